"""Accuracy beside cost, every strategy a point."""

from collections.abc import Sequence

import numpy as np


# First, as it says what to do where matplotlib is missing.
from ...explanations.sheets import FAINT_INK, INK, MARGIN, Cell, Sheet, house_style, wrap  # isort: skip
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .rows import Row, measured


# Okabe and Ito's palette, told apart by colour-blind readers as well; and a shape for each, for those without colour.
STYLES = {
    "resize": ("#E69F00", "s", "resize"),
    "tiles": ("#CC79A7", "D", "tiles"),
    "dense": ("#1a1a1a", "o", "all patches"),
    "select": ("#0072B2", "*", "chosen patches"),
    "random": ("#56B4E9", "X", "random, uniform patches"),
    "reduce": ("#009E73", "^", "fewer tokens inside the encoder"),
    "hybrid": ("#D55E00", "P", "hybrid stem"),
}
SIZES = {"*": 110, "X": 55, "P": 65}
COSTS = {
    "latency_ms": ("on_front_of_latency", "latency of one image (ms, log scale)"),
    "gflops_counted": ("on_front_of_gflops", "GFLOPs of one image, counted (log scale)"),
}
# Inches.
WIDTH, HEIGHT, LEFT, RIGHT, LEGEND, GAP = 4.7, 3.6, 0.85, 0.6, 0.66, 1.2
# Of a plot alone, which may be shown on a narrow screen.
NARROW, TALL_LEGEND = 3.7, 0.95


def family_of(row: Row) -> str:
    """A key of `STYLES`."""
    return "random" if row.strategy == "select" and row.selector in ("random", "uniform") else row.strategy


def front_numbers(rows: Sequence[Row]) -> dict[str, int]:
    """By name, the numbers that pictures and tables give to rows on a front, from the fastest on."""
    front = [row for row in measured(rows) if row.on_front_of_latency or row.on_front_of_gflops]
    ordered = sorted(front, key=lambda row: (row.latency_ms, row.accuracy))
    return {row.name: number for number, row in enumerate(ordered, start=1)}


def draw_panel(rows: Sequence[Row], cost: str, chance: float) -> Figure:
    """One plot with a legend below.

    Args:
        rows: as `mark` leaves them.
        cost: a key of `COSTS`.
        chance: accuracy of guessing.
    """
    with house_style():
        sheet = Sheet(LEFT + NARROW + RIGHT, 0.15 + HEIGHT + 0.55 + TALL_LEGEND)
        _panel(sheet.axes(Cell(LEFT, 0.15, NARROW, HEIGHT)), rows, cost, chance)
        _legend(sheet, sheet.figure.axes[0], sheet.width / 2, rows)
        return sheet.figure


def draw_pareto(rows: Sequence[Row], chance: float, headline: str, note: str) -> Figure:
    """Accuracy beside latency and beside GFLOPs, with the names of what is on a front.

    Args:
        rows: as `mark` leaves them.
        chance: accuracy of guessing.
        headline, note: above.
    """
    with house_style():
        width = LEFT + 2 * WIDTH + GAP + RIGHT
        numbers = front_numbers(rows)
        notes = wrap(note, width - 2 * MARGIN, 9)
        top = MARGIN + 0.42 + 0.17 * len(notes) + 0.3
        key_top = top + HEIGHT + 0.55 + LEGEND
        per_column = -(-len(numbers) // 3)
        sheet = Sheet(width, key_top + 0.19 * (per_column + 1) + MARGIN)
        sheet.write(headline, MARGIN, MARGIN, 14, weight="bold")
        sheet.write("\n".join(notes), MARGIN, MARGIN + 0.36, 9, FAINT_INK)
        for place, cost in enumerate(COSTS):
            cell = Cell(LEFT + place * (WIDTH + GAP), top, WIDTH, HEIGHT)
            _panel(sheet.axes(cell), rows, cost, chance)
        _legend(sheet, sheet.figure.axes[0], width / 2, rows)
        sheet.write("On a front (nothing is as accurate for less):", MARGIN, key_top, 9, weight="bold")
        by_name = {row.name: row for row in rows}
        for place, (name, number) in enumerate(numbers.items()):
            column, line = divmod(place, per_column)
            x = MARGIN + column * (width - 2 * MARGIN) / 3
            text = f"{number}  {name}: {by_name[name].accuracy:.1%}"
            sheet.write(text, x, key_top + 0.19 * (line + 1.2), 9)
        return sheet.figure


def _panel(axes: Axes, rows: Sequence[Row], cost: str, chance: float) -> None:
    flag, label = COSTS[cost]
    shown = [row for row in measured(rows) if getattr(row, cost)]
    for row in shown:
        colour, marker, _ = STYLES[family_of(row)]
        x = getattr(row, cost)
        axes.plot(
            [x, x], [row.accuracy_low, row.accuracy_high], color=colour, alpha=0.3, linewidth=1.2, zorder=2
        )
        size = SIZES.get(marker, 38)
        axes.scatter(
            x, row.accuracy, s=size, marker=marker, color=colour, edgecolor="white", linewidth=0.5, zorder=4, clip_on=False,
        )  # fmt: skip
    front = sorted((row for row in shown if getattr(row, flag)), key=lambda row: getattr(row, cost))
    if front:
        xs, ys = [getattr(row, cost) for row in front], [row.accuracy for row in front]
        axes.step(xs, ys, where="post", color=FAINT_INK, linewidth=1, zorder=3)
    axes.axhline(chance, color=FAINT_INK, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    lowest, highest = (
        (bound(getattr(row, cost) for row in shown) for bound in (min, max)) if shown else (1, 10)
    )
    axes.set_xlim(lowest / 1.6, highest * 1.35)
    axes.set_ylim(0, 1)
    _number(axes, front, cost, front_numbers(rows))
    axes.text(
        1.01, chance, "chance", transform=axes.get_yaxis_transform(), ha="left", va="center",
        fontsize=8, color=FAINT_INK,
    )  # fmt: skip
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy, with 95 % interval")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 3000 * lowest else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def _number(axes: Axes, front: Sequence[Row], cost: str, numbers: dict[str, int]) -> None:
    """Numbers beside points, moved up where another one is in the way. Points of a font at 9 points."""
    to_points = axes.transData.transform
    taken: list[np.ndarray] = []
    for row in front:
        anchor = to_points((getattr(row, cost), row.accuracy)) * 72 / axes.figure.dpi
        place = np.array([-9.0, 8.0])
        while any((abs(anchor + place - other) < [13, 11]).all() for other in taken):
            place += [0, 3]
        taken.append(anchor + place)
        axes.annotate(
            str(numbers[row.name]), (getattr(row, cost), row.accuracy), place, textcoords="offset points",
            ha="center", va="center", fontsize=9, fontweight="bold", color=INK, zorder=6,
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip


def _legend(sheet: Sheet, axes: Axes, x: float, rows: Sequence[Row]) -> None:
    used = {family_of(row) for row in measured(rows)}
    handles = [
        axes.scatter([], [], marker=marker, color=colour, s=SIZES.get(marker, 38), label=label)
        for family, (colour, marker, label) in STYLES.items()
        if family in used
    ]
    (line,) = axes.plot([], [], color=FAINT_INK, linewidth=1, label="front: nothing is as accurate for less")
    bottom = axes.get_position().y0 - 0.5 / sheet.height
    sheet.figure.legend(
        handles=[*handles, line], loc="upper center", bbox_to_anchor=(x / sheet.width, bottom),
        ncols=2 if sheet.width < 8 else 4, frameon=False, fontsize=8.5, handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip
