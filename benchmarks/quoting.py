"""Tables in documents: what stands between two markers is what a script printed last.

A table called ``causes`` stands between ``<!-- causes -->`` and ``<!-- /causes -->``.
"""

from __future__ import annotations

from pathlib import Path

DYING = Path(__file__).parent.parent / "docs/dying.md"


def quote(text: str, name: str, table: str) -> str:
    """The text with another table between the markers of that name.

    Raises:
        ValueError: The text does not hold both markers once, in their order.
    """
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(opening)
    _, ended, after = rest.partition(closing)
    if not found or not ended or opening in rest or closing in before + after:
        raise ValueError(f"expected {opening} and then {closing} in the text, each of them once")
    return f"{before}{opening}\n\n{table}\n\n{closing}{after}"


def write(name: str, table: str, document: Path = DYING) -> None:
    """Put a table into a document."""
    document.write_text(quote(document.read_text(), name, table))
