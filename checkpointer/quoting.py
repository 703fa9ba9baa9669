"""Values as messages show them: short, and never failing, whatever was passed in or stored."""

from reprlib import Repr
from typing import Final

MAX_TEXT: Final = 200
"""Characters of text that are shown."""

MAX_SHOWN: Final = 10**20
"""Integers from here on are not shown: those of many digits may have no text at all."""

_SHORT: Final = Repr()
_SHORT.maxstring = MAX_TEXT


def quoted(value: object) -> str:
    """Text in quotes, shortened in its middle; a small number; for all else its type.

    The repr of an object of unknown make may be long, may not end, and may raise.
    """
    if type(value) is str and len(value) <= MAX_TEXT:
        return repr(value)
    if isinstance(value, str):
        return _SHORT.repr_str(str.__str__(value), 1)
    if isinstance(value, bool | float) or value is None:
        return repr(value)
    if type(value) is int and -MAX_SHOWN < value < MAX_SHOWN:
        return repr(value)
    return f"a value of type {type(value).__qualname__}"
