"""Draws matplotlib figures as inline SVG in the page's text colour, legible on light and dark screens and on paper."""

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
"""Colours of data series. Colour-blind readers can distinguish them in this order, on light and dark pages."""
ALARM = "#d6404f"
"""Colour of alarms."""

_TEXT, _GRID = "#010203", "#010204"
"""Placeholder colours, which are replaced by CSS colours in the SVG."""
_WIDTH = 9.0
"""Width of a figure, in inches."""
_STYLE = {
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
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.titlecolor": _TEXT,
    "axes.edgecolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
}
_drawing = threading.Lock()
"""Held while drawing: matplotlib's settings are global to the process, and several jobs may draw at once."""


def draw(painter: Callable[[Figure], None], label: str, height: float = 3.2) -> str:
    """Let ``painter`` draw into a figure of 9 x ``height`` inches; return it as ``<svg>``, with an ARIA ``label``."""
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    out = io.StringIO()
    style = {**_STYLE, "axes.prop_cycle": cycler(color=COLOURS)}
    with _drawing, mpl.rc_context(style):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        painter(figure)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()[out.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(_TEXT, "currentColor").replace(_GRID, "var(--line)")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label, quote=True)}"', 1)
