"""The pictures of a report: SVG to be put inside a page, which gives them its colours and font.

Each is drawn as wide as a telephone's screen, so that its letters stay readable there; a wide
page lays them side by side. Colours are CSS variables, so that one picture serves light and dark.
Engines differ by colour, their variants by mark; what lies close together is told apart by a
label beside it, not by a legend.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from benchmarks.report.summary import Footprint, Loss, Speed
from neuralchat_lite.picture_style import MARKS, picture_style

WIDTH = 4.7  # inches; at 72 points an inch, 338 CSS pixels of a small telephone hold it
# Placeholder -> CSS variable. matplotlib wants colours, the page has variables.
INK, FAINT, GRID = "#010101", "#020202", "#030303"
VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid"}
SERIES = [f"#0a000{number}" for number in range(1, 9)]
VARIABLES |= {colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)}
STYLE = picture_style(INK, FAINT, GRID) | {
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def short(label: str) -> str:
    """A label shortened for pictures, which have little room beside them."""
    return label.replace("neuralchat_lite:", "ncl:")


class Styles:
    """A colour for each engine and a mark for each of its variants, the same in all pictures."""

    def __init__(self, labels: Sequence[str]) -> None:
        engines = list(dict.fromkeys(label.partition(":")[0] for label in labels))
        variants: dict[str, list[str]] = {engine: [] for engine in engines}
        for label in dict.fromkeys(labels):
            variants[label.partition(":")[0]].append(label)
        self.colours = {e: SERIES[i % len(SERIES)] for i, e in enumerate(engines)}
        self.marks = {
            label: MARKS[i % len(MARKS)] for of in variants.values() for i, label in enumerate(of)
        }

    def colour(self, label: str) -> str:
        return self.colours[label.partition(":")[0]]

    def mark(self, label: str) -> str:
        return self.marks[label]


@contextmanager
def picture(height: float) -> Iterator[tuple[Figure, Any, list[str]]]:
    """A figure, its axes, and a list that holds the SVG in the end."""
    made: list[str] = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        yield figure, axes, made
        made.append(svg_of(figure))


def svg_of(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    # As wide as its place in the page, in its own proportions.
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r'<svg \1 role="img"', svg, count=1)
    svg = re.sub(r"font: ([^;]*?)px [^;]*?(;|\")", r"font-size: \1px\2", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to them, and pages have one of each
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Places between 0 and 1 moved so that neighbours are `gap` apart, and none leaves 0 to 1
    as long as there is room."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved: list[float] = []
    for index in order:
        lowest = moved[-1] + gap if moved else 0.0
        moved.append(max(places[index], lowest))
    highest = 1.0
    for rank in reversed(range(len(moved))):
        moved[rank] = min(moved[rank], highest)
        highest = moved[rank] - gap
    found = [0.0] * len(places)
    for index, place in zip(order, moved, strict=True):
        found[index] = place
    return found


def label_points(
    axes: Any, figure: Figure, points: Sequence[tuple[float, float]], texts: Sequence[str],
    colours: Sequence[str],
) -> None:  # fmt: skip
    """Name points at the right edge of the picture, with thin lines from each to its name."""
    figure.canvas.draw()  # so that pixels are known
    to_pixels, from_axes = axes.transData, axes.transAxes.inverted()
    heights = [from_axes.transform(to_pixels.transform(point))[1] for point in points]
    gap = 12.5 / (axes.get_window_extent().height * 72 / figure.dpi)
    for point, text, colour, height in zip(
        points, texts, colours, apart(heights, gap), strict=True
    ):
        axes.annotate(
            text,
            point,
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=INK,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "linestyle": (0, (1, 2)),
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )


def pareto(
    speed: Sequence[Speed], loss: Sequence[Loss], styles: Styles, baseline: str
) -> str | None:
    """Tokens/s over accuracy lost: what lies up and to the left is better in both."""
    rates = {one.label: one.tokens_per_s for one in speed}
    points = [(one.points, one.error, rates[one.label], one.label) for one in loss
              if one.label in rates]  # fmt: skip
    if len(points) < 2:
        return None
    with picture(3.6) as (figure, axes, made):
        front = frontier([(lost, rate) for lost, _, rate, _ in points])
        axes.step(*zip(*front, strict=True), where="post", color=FAINT, linewidth=1, zorder=1)
        for lost, error, rate, label in points:
            axes.errorbar(
                lost,
                rate,
                xerr=1.96 * error,
                fmt=styles.mark(label),
                color=styles.colour(label),
                markersize=6,
                elinewidth=1,
                zorder=2,
            )
        axes.set_xlabel(f"points below {baseline}, and 95 %")
        axes.set_ylabel("tokens/s")
        axes.set_ylim(bottom=0)
        axes.grid(True)
        label_points(
            axes,
            figure,
            [(lost, rate) for lost, _, rate, _ in points],
            [short(label) for *_, label in points],
            [styles.colour(label) for *_, label in points],
        )
    return made[0]


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front: points (lost, rate) that no other beats in both, least lost first."""
    best: list[tuple[float, float]] = []
    for lost, rate in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or rate > best[-1][1]:
            best.append((lost, rate))
    return best


def over_context(speed: Sequence[Speed], styles: Styles, what: str, unit: str) -> str | None:
    """A line for each variant over the tokens of context, both axes logarithmic.

    what: "step" or "first_token"
    """
    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    for one in speed:
        samples = getattr(one, what)
        if samples is not None:
            scale = 1000 if unit == "ms" else 1
            values = (samples.median, samples.percentile(0.1), samples.percentile(0.9))
            lines.setdefault(one.label, []).append((one.context, *(scale * v for v in values)))
    if not lines:
        return None
    contexts = sorted({one.context for one in speed})
    with picture(3.6) as (figure, axes, made):
        for label, line in lines.items():
            xs, middle, low, high = zip(*sorted(line), strict=True)
            colour = styles.colour(label)
            axes.plot(xs, middle, color=colour, marker=styles.mark(label), markersize=5,
                      linewidth=1.4)  # fmt: skip
            axes.vlines(xs, low, high, color=colour, linewidth=1, alpha=0.6)
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [str(context) for context in contexts])
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        axes.set_xlabel("tokens of context" if what == "step" else "tokens of prompt")
        axes.set_ylabel(unit)
        axes.grid(True)
        ends = [max(line)[:2] for line in lines.values()]
        label_points(
            axes, figure, ends, list(map(short, lines)), [styles.colour(label) for label in lines]
        )
    return made[0]


def bars(
    values: Sequence[tuple[str, float, float | None]],
    styles: Styles,
    unit: str,
    line: float | None = None,
) -> str | None:
    """Horizontal bars, longest first; (label, value, part of it that is drawn solid).

    line: where the limit lies that all are measured by
    """
    if not values:
        return None
    ordered = sorted(values, key=lambda bar: bar[1])
    with picture(0.7 + 0.42 * len(ordered)) as (_, axes, made):
        for place, (label, value, part) in enumerate(ordered):
            colour = styles.colour(label)
            axes.barh(place, value, height=0.4, color=colour, alpha=1 if part is None else 0.35)
            if part is not None:
                axes.barh(place, part, height=0.4, color=colour)
            # Names stand above their bars: beside them they would take half of a telephone.
            axes.annotate(short(label), (0, place + 0.42), xytext=(1, 0),
                          textcoords="offset points", va="center", fontsize=8.5)  # fmt: skip
            axes.annotate(f"{value:.2f}", (value, place), xytext=(3, 0),
                          textcoords="offset points", va="center", fontsize=8.5)  # fmt: skip
        axes.set_yticks([])
        axes.set_ylim(-0.45, len(ordered) - 0.3)
        axes.spines["left"].set_color(FAINT)
        top = max([value for _, value, _ in ordered] + ([line] if line else []))
        axes.set_xlim(0, 1.13 * top)
        if line is not None:
            axes.axvline(line, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel(unit)
        axes.grid(True, axis="x")
    return made[0]


def memory(found: Sequence[Footprint], styles: Styles) -> str | None:
    values = []
    for one in found:
        peak, private = one.value("peak_rss_bytes"), one.value("private_bytes")
        if peak is not None:
            values.append((one.label, peak / 1e9, None if private is None else private / 1e9))
    return bars(values, styles, "GB at the peak; solid: private to the process")


def differences(
    rows: Sequence[tuple[str, str, float, float, float]], styles: Styles, unit: str
) -> str | None:
    """(task, label, difference, low, high): a mark and its interval for each, by task."""
    if not rows:
        return None
    tasks = list(dict.fromkeys(task for task, *_ in rows))
    with picture(0.9 + 0.19 * len(rows) + 0.28 * len(tasks)) as (_, axes, made):
        place, ticks = 0.0, []
        for task in tasks:
            axes.annotate(task, (0, place), xycoords=("axes fraction", "data"), xytext=(2, 0),
                          textcoords="offset points", va="center", fontsize=9,
                          weight="bold")  # fmt: skip
            place -= 1.2
            for _, label, difference, low, high in (row for row in rows if row[0] == task):
                colour = styles.colour(label)
                axes.hlines(place, low, high, color=colour, linewidth=1.6)
                axes.plot(difference, place, styles.mark(label), color=colour, markersize=5)
                ticks.append((place, label))
                place -= 1
            place -= 0.4
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks([at for at, _ in ticks], [short(label) for _, label in ticks], fontsize=8.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(place + 0.4, 0.9)
        axes.set_xlabel(unit)
        axes.grid(True, axis="x")
    return made[0]
