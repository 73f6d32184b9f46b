"""The picture of a sensitivity: what each matrix costs, and what a byte more is worth.

Above, a dot for each matrix over its layer; it is filled where more bytes are proposed for it.
Below, the divergence over the bits per weight, along the greedy path. An SVG has the colours of the
viewer, light or dark; other formats have a white ground.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.picture_style import MARKS, picture_style
from neuralchat_lite.quantization import mixture
from neuralchat_lite.quantization.mixture import Cost, Mixture

# Colour in a light picture -> in a dark one.
INK, FAINT, GRID = "#1f2430", "#737a8c", "#dfe2ea"
DARK = {INK: "#e6e8ee", FAINT: "#9aa1b3", GRID: "#343a48"}
SERIES = ("#2f6fd0", "#d9631e", "#2b8a3e", "#a63db8", "#c2255c", "#0c8599", "#946200", "#5f3dc4")
DARK |= dict(zip(SERIES, ("#74a7f5", "#f0955e", "#69c97d", "#d58ae3", "#f27ba3", "#57c3d4",
                          "#d7ab45", "#a994f2"), strict=True))  # fmt: skip
STYLE = picture_style(INK, FAINT, GRID) | {"figure.facecolor": "white"}
LEAST = 1e-12  # nats: less is drawn there, on an axis of logarithms


def require_drawable(file: Path) -> None:
    """Raise ConfigError when a picture cannot be drawn into such a file."""
    if file.suffix.lower() not in (".svg", ".png"):
        raise ConfigError(
            f"the picture {file} must end in .svg, which follows light and dark, or .png: give "
            "another name"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "the picture needs the package matplotlib, which is not installed: pip install "
            "'neuralchat_lite[plot]', or leave the picture out"
        )


def draw(costs: Sequence[Cost], chosen: Mixture, measured: Mapping[str, float], file: Path) -> Path:
    """Write a picture. measured: the KL of the configured and of the chosen mixture, by label."""
    require_drawable(file)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 7.2), layout="constrained")
        above, below = figure.subplots(2, 1)
        draw_costs(above, costs, chosen)
        draw_path(below, costs, chosen, measured)
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() == ".png":
            figure.savefig(file, dpi=144)
            return file
        figure.savefig(file, metadata={"Date": None, "Creator": None}, transparent=True)
    file.write_text(with_dark_colours(file.read_text(encoding="utf-8")), encoding="utf-8")
    return file


def draw_costs(axes: Any, costs: Sequence[Cost], chosen: Mixture) -> None:
    """KL of the smallest option over the layer, a line for each kind of matrix."""
    kinds = list(dict.fromkeys(cost.kind for cost in costs))
    smallest = mixture.smallest(costs)
    last = max((cost.layer for cost in costs if cost.layer is not None), default=-1)
    for number, kind in enumerate(kinds):
        colour, mark = SERIES[number % len(SERIES)], MARKS[number % len(MARKS)]
        points = [
            (last + 1 if cost.layer is None else cost.layer, least.kl, option != least)
            for cost, least, option in zip(costs, smallest, chosen, strict=True)
            if cost.kind == kind
        ]
        xs, ys, more = zip(*points, strict=True)
        heights = [max(y, LEAST) for y in ys]
        axes.plot(xs, heights, color=colour, linewidth=0.8, alpha=0.6)
        axes.plot([], [], mark, color=colour, label=kind)
        for x, y, filled in zip(xs, heights, more, strict=True):
            face = colour if filled else "none"
            axes.plot(x, y, mark, color=colour, markerfacecolor=face, markersize=5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_yscale("log")
    axes.set_xlabel("layer (the head after the last); filled: more bytes are proposed")
    axes.set_ylabel("KL of one matrix alone, nats")
    axes.grid(True)
    figure = axes.get_figure()
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)


def draw_path(
    axes: Any, costs: Sequence[Cost], chosen: Mixture, measured: Mapping[str, float]
) -> None:
    """The sum of KL along the greedy path, and what was measured."""
    weights = sum(cost.weights for cost in costs)
    path = [(8 * mixture.bytes_of(m) / weights, mixture.kl_of(m)) for m in mixture.along(costs)]
    label = "sums of what matrices cost alone"
    axes.plot(*zip(*path, strict=True), color=FAINT, linewidth=1.4, label=label)
    mixtures = (mixture.configured(costs), chosen)
    for number, ((label, kl), each) in enumerate(zip(measured.items(), mixtures, strict=True)):
        x = 8 * mixture.bytes_of(each) / weights
        text = f"{label}, measured: {kl:.3g}"
        axes.plot(x, kl, MARKS[number], color=SERIES[number], markersize=7, label=text)
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("bits per weight")
    axes.set_ylabel("KL, nats")
    axes.grid(True)


def with_dark_colours(svg: str) -> str:
    """An SVG whose colours are variables that follow the viewer."""
    names = {colour: f"--c{number}" for number, colour in enumerate(DARK)}
    for colour, name in names.items():
        svg = svg.replace(colour, f"var({name})")
    light = "".join(f"{name}: {colour}; " for colour, name in names.items())
    dark = "".join(f"{name}: {DARK[colour]}; " for colour, name in names.items())
    style = (
        f"<style>svg {{ {light}}} @media (prefers-color-scheme: dark) {{ svg {{ {dark}}} }}</style>"
    )
    return re.sub(r"(<svg [^>]*>)", lambda match: match[1] + style, svg, count=1)
