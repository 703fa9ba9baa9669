"""Curves as SVG: the same bytes for the same figures, readable on light and on dark pages."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from growth import Curve

# Grey that is legible on white and on GitHub's dark background.
_INK: Final = "#808890"
_OURS: Final = "#2f81f7"
_OFFICIAL: Final = "#e36209"
_STYLES: Final = {
    "ours-sqlite": ("ours, SQLite", _OURS, "-", "o"),
    "ours-postgresql": ("ours, PostgreSQL", _OURS, "--", "s"),
    "official-sqlite": ("official, SQLite", _OFFICIAL, "-", "o"),
    "official-postgresql": ("official, PostgreSQL", _OFFICIAL, "--", "s"),
    "in-memory": ("InMemorySaver", _INK, ":", "^"),
}
_SETTINGS: Final[Any] = {
    "svg.hashsalt": "checkpointer",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw(curve: "Curve", directory: Path) -> Path:
    """Write a curve; the file's path."""
    path = directory / f"{curve.name}.svg"
    directory.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for saver, (label, colour, line, marker) in _STYLES.items():
            points: Sequence[tuple[float, float]] = curve.lines.get(saver, ())
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, line, color=colour, marker=marker, markersize=3, label=label)
        axes.set(title=curve.title, xlabel=curve.x, ylabel=curve.y)
        if curve.logarithmic:
            axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            if curve.logarithmic:
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            axis.set_minor_formatter(NullFormatter())
        axes.grid(visible=True, color=_INK, alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    return path
