"""How pictures look, the library's and the benchmarks': lines, letters and marks."""

from __future__ import annotations

from typing import Any

MARKS = "osD^vPX*"  # of series, in order


def picture_style(ink: str, faint: str, grid: str) -> dict[Any, Any]:
    """matplotlib's settings. An SVG of the same picture has the same bytes, and its text stays
    text, which can be searched and takes the page's font.

    ink: colour of words; faint: of axes and marks on them; grid: of the lines behind
    """
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "neuralchat_lite",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": faint,
        "axes.labelsize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "grid.color": grid,
        "grid.linewidth": 0.8,
        "xtick.color": faint,
        "ytick.color": faint,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
    }
