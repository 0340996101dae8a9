"""Figures by matplotlib as inline SVG in the page's own ink, so that they read on light, dark and paper alike."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#3f7fc4", "#d9822b", "#2a9d77", "#b565b0", "#8a8f3c", "#d0566a", "#5b9aa0", "#8c6d5a")
"""For series of data; told apart by colour-blind readers in this order, on light and on dark."""
ALARM = "#d6404f"

_INK, _FAINT = "#010203", "#010204"
_WIDTH = 9.0
_LOOK = {
    "svg.fonttype": "none",
    "svg.hashsalt": "latent-pacs",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _FAINT,
    "grid.linewidth": 0.8,
}
_drawing = threading.Lock()
"""matplotlib's settings are of the process; several jobs may draw."""


def draw(painter: Callable[[Figure], None], label: str, height: float = 3.2) -> str:
    """What ``painter`` draws into a figure 9 x ``height`` inches, as ``<svg>``; ``label`` is for screen readers."""
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    out = io.StringIO()
    look = {**_LOOK, "axes.prop_cycle": cycler(color=COLOURS)}
    with _drawing, mpl.rc_context(look):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        painter(figure)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()[out.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(_INK, "currentColor").replace(_FAINT, "var(--line)")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label, quote=True)}"', 1)
