"""What is said of a wrong usage: it quotes no value that may be a secret."""

import re
from collections.abc import Iterator, Sequence
from typing import Final

_PLAIN: Final = re.compile(r"[\w.-]*", re.ASCII)
"""What may be quoted. A URL in the wrong place, or a part of one that the shell has cut, would show
its password."""

_WORD: Final = re.compile(r"\w{3,}")


def hidden(message: str, given: Sequence[str]) -> str:
    """A message about arguments, with `***` in place of those that may be secret."""
    values = {part for one in given for part in _parts(one) if not _PLAIN.fullmatch(part)}
    for value in sorted(values, key=len, reverse=True):
        for text in (value, repr(value)[1:-1]):
            message = message.replace(text, "***")
    # However else it was written down: a secret's words are not.
    words = {word for value in values for word in _WORD.findall(value)}
    for word in sorted(words, key=len, reverse=True):
        message = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "***", message)
    return message


def _parts(argument: str) -> Iterator[str]:
    """What of an argument may be a secret: all but the name of an option with a value."""
    name, _, value = argument.partition("=")
    is_option = name.startswith("-") and _PLAIN.fullmatch(name)
    yield value if is_option else argument
