"""Both ways of the default serde: with LangGraph's private names, and without them."""

import pytest

lossless_only = pytest.mark.parametrize("way", ["private"], indirect=True)
"""For tests of what the public way does not do: it stores surrogates as LangGraph does, as "?"."""
