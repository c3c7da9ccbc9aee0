"""Plot of a study: the metric of its trials, in order and against each setting."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from ..figures import FAINT_INK, INK, MARGIN, Cell, Sheet, house_style


from matplotlib.axes import Axes  # isort: skip
from matplotlib.figure import Figure  # isort: skip
from matplotlib.ticker import NullLocator  # isort: skip

if TYPE_CHECKING:
    import optuna


LOGARITHMIC = ("learning_rate", "weight_decay")
DONE, STOPPED, BEST = "#0072B2", "#999999", "#D55E00"
# Inches.
SIDE, HEIGHT, GAP, TOP, LEFT, BOTTOM = 2.6, 2.5, 0.35, 0.9, 0.85, 1.0


def draw_study(trials: Sequence["optuna.trial.FrozenTrial"], metric: str, more_is_better: bool) -> Figure:
    """Draws a panel of all trials in order with the best so far, and one for each setting.

    Args:
        trials: finished trials; those that were pruned are drawn faintly, at the last metric they reached.
        metric: name of the metric.
        more_is_better: whether a higher metric is better.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    with house_style():
        width = LEFT + (1 + len(names)) * (SIDE + GAP) + MARGIN
        sheet = Sheet(width, TOP + HEIGHT + BOTTOM)
        sheet.write(f"{len(trials)} trials", MARGIN, 0.2, 13, weight="bold")
        sheet.write(f"{metric} on the validation split", MARGIN, 0.5, 9, FAINT_INK)
        best = (max if more_is_better else min)(
            (trial for trial in trials if trial.state.name == "COMPLETE"), key=lambda trial: trial.value
        )
        for place, name in enumerate(["trial", *names]):
            axes = sheet.axes(Cell(LEFT + place * (SIDE + GAP), TOP, SIDE, HEIGHT))
            _panel(axes, trials, best, name)
            if place:
                axes.tick_params(labelleft=False)
            else:
                axes.set_ylabel(metric)
                _draw_best_so_far(axes, trials, more_is_better)
        handles = sheet.figure.axes[0].get_legend_handles_labels()[0]
        sheet.figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(LEFT / width, 0.02), ncols=4, frameon=False,
            fontsize=8.5,
        )  # fmt: skip
        return sheet.figure


def _panel(
    axes: Axes,
    trials: Sequence["optuna.trial.FrozenTrial"],
    best: "optuna.trial.FrozenTrial",
    name: str,
) -> None:
    for label, color, size, shown in (
        ("stopped early", STOPPED, 18, [trial for trial in trials if trial.state.name == "PRUNED"]),
        ("trial", DONE, 26, [trial for trial in trials if trial.state.name == "COMPLETE"]),
        ("the best", BEST, 60, [best]),
    ):
        shown = [trial for trial in shown if trial.value is not None]
        if not shown:
            continue
        xs = [trial.number if name == "trial" else trial.params[name] for trial in shown]
        axes.scatter(
            xs, [trial.value for trial in shown], s=size, color=color, edgecolor="white", linewidth=0.5, label=label,  # noqa: E501
            zorder=3,
        )  # fmt: skip
    if name in LOGARITHMIC:
        axes.set_xscale("log")
        # matplotlib's own labels overlap within a decade.
        tried = [trial.params[name] for trial in trials if name in trial.params]
        low, high = min(tried), max(tried)
        ticks = sorted({low, math.sqrt(low * high), high})
        axes.set_xticks(ticks, [f"{tick:.1e}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(name.replace("_", " "))
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)


def _draw_best_so_far(axes: Axes, trials: Sequence["optuna.trial.FrozenTrial"], more_is_better: bool) -> None:
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    bests = list(accumulate((trial.value for trial in done), max if more_is_better else min))
    axes.step(
        [trial.number for trial in done],
        bests,
        where="post",
        color=FAINT_INK,
        linewidth=1,
        label="best so far",
    )
