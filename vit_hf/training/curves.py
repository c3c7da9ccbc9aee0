"""Learning curves of a run, from the log of `Trainer`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES_NAME = "curves.png"
CURVES_CAPTION = "Learning curves: loss, main metric and learning rate over training steps"

# Panels by title: names in the log, with labels. The main metric comes between them.
LOSSES = {"loss": "training", "eval_loss": "validation"}
LEARNING_RATES = {"learning_rate": ""}

Points = list[tuple[int, float]]


def read_curves(log: Sequence[Mapping[str, Any]], metric: str | None = None) -> dict[str, dict[str, Points]]:
    """Reads the curves of a log.

    Args:
        log: `trainer.state.log_history`.
        metric: name of the main metric, with or without "eval_"; None or the loss for none.

    Returns:
        For each panel's title its curves by label, as (step, value) in order. What was not logged is left
        out.
    """
    panels = {"Loss": LOSSES}
    name = (metric or "loss").removeprefix("eval_")
    if name != "loss":
        panels[name[:1].upper() + name[1:].replace("_", " ")] = {f"eval_{name}": "validation"}
    panels["Learning rate"] = LEARNING_RATES
    found = {}
    for title, names in panels.items():
        curves = {
            # The last one of each step: a resumed run may have logged it before.
            label: sorted({entry["step"]: entry[name] for entry in log if name in entry}.items())
            for name, label in names.items()
        }
        if any(curves.values()):
            found[title] = {label: points for label, points in curves.items() if points}
    return found


def draw_curves(
    log: Sequence[Mapping[str, Any]], metric: str | None = None, best_step: int | None = None
) -> "Figure":
    """Draws loss, main metric and learning rate over the training steps.

    Args:
        log: `trainer.state.log_history`.
        metric: name of the main metric; see `read_curves`.
        best_step: step whose model was kept, which is marked.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if nothing was logged.
    """
    # First: its error says how to install matplotlib.
    from ..figures import FAINT_INK, INK, MARGIN, Cell, Sheet, house_style

    # isort: split
    from matplotlib.ticker import MaxNLocator

    panels = read_curves(log, metric)
    if not panels:
        raise ValueError("The log has no loss, metric or learning rate: set logging_steps or eval_strategy.")
    # In inches; Okabe and Ito's palette.
    width, height, left, gap, top = 5.6, 1.5, 0.75, 0.5, MARGIN + 0.25
    colors = {"training": "#0072B2", "validation": "#D55E00", "": "#1a1a1a"}
    steps = [step for curves in panels.values() for points in curves.values() for step, _ in points]
    with house_style():
        sheet = Sheet(left + width + MARGIN, top + len(panels) * (height + gap) + MARGIN)
        for index, (title, curves) in enumerate(panels.items()):
            axes = sheet.axes(Cell(left, top + index * (height + gap), width, height))
            axes.set_title(title, color=INK)
            for label, points in curves.items():
                # A single value would be no line.
                marker = "o" if len(points) <= 20 else None
                axes.plot(
                    *zip(*points, strict=True),
                    color=colors[label],
                    label=label,
                    linewidth=1.4,
                    marker=marker,
                    markersize=3,
                )
            if best_step is not None:
                axes.axvline(best_step, color=FAINT_INK, linestyle=":", linewidth=1)
            margin = 0.02 * (max(steps) - min(steps)) or 1
            axes.set_xlim(min(steps) - margin, max(steps) + margin)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.tick_params(labelsize=8, colors=FAINT_INK)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            if len(curves) > 1:
                axes.legend(frameon=False, fontsize=8, labelcolor=INK)
        kept = "" if best_step is None else f"; the dotted line marks step {best_step}, whose model was kept"
        axes.set_xlabel(f"training step{kept}", color=FAINT_INK, fontsize=8.5)
    return sheet.figure


def write_curves(
    folder: Path, log: Sequence[Mapping[str, Any]], metric: str | None = None, best_step: int | None = None
) -> str:
    """Writes `curves.png` to a folder, and returns a line that says where it is, or why there is none."""
    path = folder / CURVES_NAME
    try:
        draw_curves(log, metric, best_step).savefig(path)
    except ImportError:
        return f"No {CURVES_NAME}: it needs matplotlib (pip install vit_hf[train])"
    except (OSError, ValueError) as error:
        return f"No {CURVES_NAME}: {error}"
    return f"Learning curves: {path}"
