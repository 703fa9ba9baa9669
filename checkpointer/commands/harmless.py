"""Stored text as a terminal may have it: what a terminal would obey is shown and not sent."""

import re
import unicodedata
from typing import Final

_SHOWN: Final = frozenset("\n\t\u200c\u200d")
"""Controls that stay: the joiners make up emoji and words of several scripts."""

_OBEYED: Final = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
"""Unicode's categories of what has no shape of its own: controls, which start escape sequences;
formats, which turn the direction of text round; private characters; surrogates; separators."""

_PLAIN: Final = re.compile(r"[\n\t -~]*")


def harmless(text: str) -> str:
    r"""Text with every control but line feed and tab as its escape: `\x1b`, `\u202e`."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(map(_escaped, text))


def line(text: str) -> str:
    """The same for one line."""
    return harmless(text).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(character: str) -> str:
    if character in _SHOWN or unicodedata.category(character) not in _OBEYED:
        return character
    code = ord(character)
    if code < 0x100:  # noqa: PLR2004
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"  # noqa: PLR2004


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 write", "2 writes"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(number: int) -> str:
    """Bytes for people: 512 B, 1.5 kB, 12 MB; powers of 1000."""
    amount, units = float(number), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:  # noqa: PLR2004
        amount /= 1000
        del units[0]
    digits = 1 if amount < 10 and units[0] != "B" else 0  # noqa: PLR2004
    return f"{amount:.{digits}f} {units[0]}"
