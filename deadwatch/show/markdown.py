"""Texts in Markdown: tables, which read well as plain text too, and names that are no markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deadwatch.show.texts import printable


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of which the first column is of names and the others are of figures."""
    cells = [[_cell(text) for text in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = []
    for row in cells:
        texts = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def literal(text: str) -> str:
    """A text as Markdown that shows it as it is, wherever in a line it stands.

    HTML counts as markup too: TensorBoard lets pictures and links through.
    """
    shown = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    shown = re.sub(r"[\\`*_\[\]]", r"\\\g<0>", shown)
    return re.sub(r"^( *\d*)([-+#>.)])", r"\1\\\2", shown).lstrip()  # or a list, a heading


def code(text: str) -> str:
    """A text as code, in which only what would end it is changed."""
    return f"`{printable(text).replace('`', chr(39))}`"
