"""A bundle of documents → one HTML file that needs nothing else, and asks for nothing.

The front end is that of the tab. Names of layers, runs and remedies are in there as JSON, in which
nothing that means anything to HTML is left; and the page forbids itself every other script, every
picture that is not its own and every request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files

from deadwatch.errors import DeadwatchError
from deadwatch.show.bundle import left_out
from deadwatch.show.documents import Document
from deadwatch.show.texts import printable

_START = """
{
  const documents = JSON.parse(document.getElementById("deadwatch-data").textContent);
  show(document.getElementById("deadwatch"), embedded(documents));
}
"""

_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; font: 14px/1.45 system-ui, sans-serif; }
footer { padding: 8px 16px; opacity: 0.75; font-size: 12px; }
footer p { margin: 2px 0; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main id="deadwatch"><noscript>This report is drawn by a script that is in it.</noscript></main>
<footer>{notes}</footer>
<script type="application/json" id="deadwatch-data">{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def page(bundled: Document, title: str, notes: tuple[str, ...] = ()) -> str:
    """The report.

    Args:
        bundled: What `deadwatch.show.bundle.bundle` returned.
        title: What the page is called.
        notes: Sentences for its end, besides those that say what was left out.
    """
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    lines = (*notes, *left_out(bundled))
    return _PAGE.format(
        policy=policy,
        title=html.escape(printable(title)),
        style=_STYLE,
        notes="".join(f"<p>{html.escape(printable(line))}</p>" for line in lines),
        data=harmless(bundled),
        script=script,
    )


def _script() -> str:
    text = files("deadwatch.show").joinpath("web/index.js").read_text("utf-8") + _START
    if "</script" in text.lower() or "<!--" in text:
        raise DeadwatchError("the front end holds what would end it within a page")
    return text


def harmless(value: object) -> str:
    """JSON that can stand anywhere in a page: it holds no character that HTML looks for."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # all of it ASCII
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
