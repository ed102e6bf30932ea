"""Names as text for terminals and files: what a name holds is shown, and never acts."""

from __future__ import annotations

import sys
import unicodedata

_ACTS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: str) -> str:
    """A text with all that would act on a terminal written as its code.

    Control characters, marks that turn the direction of writing, line breaks, halves of characters.
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _ACTS:
        return character
    return character.encode("unicode_escape").decode()


def encodable(text: str) -> str:
    """A text with halves of characters, which no file can hold, written as their codes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def writable(text: str) -> str:
    """A text with what the terminal's encoding lacks written as its codes: not all have UTF-8."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def tell(text: str) -> None:
    """Print a text, whatever the terminal."""
    print(writable(text))
