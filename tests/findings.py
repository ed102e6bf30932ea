"""Findings that no rule has made."""

from __future__ import annotations

from typing import Any

from deadwatch import Finding


def finding(name: str = "DW103", severity: Any = "info", *where: str, **given: Any) -> Finding:
    """A finding with all there can be."""
    places = where or ("conv1.bias",)
    told = {
        "title": f"Title of {name}",
        "message": f"{name} is so at {places[0]}",
        "numbers": {"ratio": 0.5, "units": 12.0},
        "reason": f"Reason of {name}.",
        "source": f"Source of {name}, 2015",
        "code": f"fix({places[0]!r})",
    }
    return Finding(name, severity, places, **(told | given))
