"""What was tried on the search split, and what came of it on the test split, beside what it costs."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..comparison.results import pareto_front
from .fitness import COSTS


# After the line that says what to do where matplotlib is missing.
# First: it says what to do where matplotlib is missing.
from ..figures.layout import FAINT_INK, INK, MARGIN, Cell, Sheet, house_style  # isort: skip
from matplotlib.axes import Axes  # isort: skip
from matplotlib.figure import Figure  # isort: skip
from matplotlib.ticker import FuncFormatter  # isort: skip

if TYPE_CHECKING:
    from .report import Row


# Okabe and Ito's palette, and a shape for each.
STYLES = {
    "found": ("#0072B2", "*"),
    "found, retrained": ("#56B4E9", "P"),
    "hand-made": ("#D55E00", "s"),
    "hand-made, weights of the supernet": ("#E69F00", "D"),
}
SIZES = {"*": 14, "P": 9}
# Inches.
WIDTH, HEIGHT, LEFT, GAP, TOP, LEGEND = 4.4, 3.4, 0.9, 1.0, 0.75, 1.25


def draw_search(
    tried: Sequence[tuple[float, float]],
    rows: Sequence["Row"],
    kind: str,
    metric: str,
    more_is_better: bool,
) -> Figure:
    """Two panels: all networks that were tried, with the front; and rows, with standard deviations over
    seeds.

    Args:
        tried: cost and metric of each.
        rows: of all seeds.
        kind: of the cost, a key of `COSTS`.
        metric: its name.
        more_is_better: whether it is.
    """
    with house_style():
        sheet = Sheet(LEFT + 2 * WIDTH + GAP + MARGIN, TOP + HEIGHT + LEGEND)
        sheet.write("Networks that were tried, and what was found", MARGIN, 0.2, 13, weight="bold")
        left = sheet.axes(Cell(LEFT, TOP, WIDTH, HEIGHT))
        right = sheet.axes(Cell(LEFT + WIDTH + GAP, TOP, WIDTH, HEIGHT))
        _draw_tried(left, tried, more_is_better)
        left.set_title("on the split of the search, weights of the supernet")
        is_test = rows[0].test is not None
        _draw_rows(right, rows, kind)
        seeds = len({row.seed for row in rows})
        right.set_title(
            f"on the {'test' if is_test else 'validation'} split"
            + (f", mean and deviation of {seeds} seeds" if seeds > 1 else "")
        )
        for axes in (left, right):
            axes.set_xlabel(COSTS[kind])
            axes.set_ylabel(metric)
            if metric in ("accuracy", "f1"):
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
            axes.grid(alpha=0.25, linewidth=0.6)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            axes.tick_params(colors=INK, labelsize=9)
        handles = [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        sheet.figure.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, (LEGEND - 0.5) / sheet.height), ncols=3,
            frameon=False, fontsize=9, columnspacing=1.5,
        )  # fmt: skip
        return sheet.figure


def _draw_tried(axes: Axes, tried: Sequence[tuple[float, float]], more_is_better: bool) -> None:
    costs, values = zip(*tried, strict=True)
    axes.scatter(costs, values, s=9, color=FAINT_INK, alpha=0.35, linewidth=0, label="tried by the search")
    places = pareto_front(costs, [value if more_is_better else -value for value in values])
    axes.step(
        [costs[place] for place in places], [values[place] for place in places], where="post", color=INK,
        linewidth=1.2, label="front: nothing is as good for less",
    )  # fmt: skip


def _draw_rows(axes: Axes, rows: Sequence["Row"], kind: str) -> None:
    for way, (colour, marker) in STYLES.items():
        groups: dict[int, list[tuple[float, float]]] = {}
        for row in rows:
            if row.way == way:
                groups.setdefault(row.budget, []).append((row.costs[kind], row.score))
        if not groups:
            continue
        points = [tuple(map(statistics.mean, zip(*group, strict=True))) for group in groups.values()]
        deviations = [
            statistics.stdev(score for _, score in group) if len(group) > 1 else 0
            for group in groups.values()
        ]
        axes.errorbar(
            [x for x, _ in points], [y for _, y in points], yerr=deviations if any(deviations) else None,
            linestyle="none", marker=marker, markersize=SIZES.get(marker, 7), color=colour, capsize=3, elinewidth=1,  # noqa: E501
            markeredgecolor="white", markeredgewidth=0.5, label=way,
        )  # fmt: skip
