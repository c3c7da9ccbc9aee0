"""One-page report of a comparison: kept patches, and accuracy against cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..figures import FAINT_INK, INK, MARGIN, Cell, Sheet, house_style

# First: its error says how to install matplotlib.
from .drawing import draw_boxes, outline, panel_axes
from .explanation import kept_picture


if TYPE_CHECKING:
    from .explanation import Explanation


# Okabe and Ito's palette, safe for color-blind readers.
ADAPTIVE, OTHERS, TRUTH = "#0072B2", ("#E69F00", "#009E73", "#CC79A7", "#56B4E9"), "#E69F00"
SIDE, GAP, TITLE = 3.1, 0.3, 0.42
# Height of the zoomed panels in inches, and their width in multiples of the object's.
ZOOM_HEIGHT, ZOOM = 1.7, 4.0
PLOT_HEIGHT = 3.0


def draw_report(
    explanations: Sequence["Explanation"],
    rows: Sequence[dict],
    accuracy_by_patches: dict[int, float],
    boxes: Sequence[Sequence[Sequence[float]]],
) -> Figure:
    """Draws images with their kept patches, zooms in on their objects, and plots accuracy against cost.

    Args:
        explanations: explanations of a few images.
        rows: compared methods, each with `name`, `accuracy` (None: speed only), `tokens` and
            `images_per_second`; the adaptive one has "adaptive" in its name.
        accuracy_by_patches: accuracy of the adaptive model by number of patches.
        boxes: objects of each image, `[x0, y0, x1, y1]` in pixels; the zoomed panel shows the first.
    """
    with house_style():
        count = len(explanations)
        width = 2 * MARGIN + count * SIDE + (count - 1) * GAP
        top = MARGIN + 0.55
        zoom_top = top + TITLE + SIDE + 0.12
        plot_top = zoom_top + ZOOM_HEIGHT + 0.7
        sheet = Sheet(width, plot_top + PLOT_HEIGHT + 0.75)
        first = explanations[0]
        total = first.grid[0] * first.grid[1]
        size = f"{first.picture_size[1]}x{first.picture_size[0]}"
        headline = f"Computing on {len(first.kept_patches)} of {total} patches of a {size} image"
        sheet.write(headline, MARGIN, MARGIN, 15, weight="bold")
        note = (
            "Outlined in blue: the patches that were computed on; gray was never seen. In orange: the object "
            "to classify, enlarged below."
        )
        sheet.write(note, MARGIN, MARGIN + 0.3, 9, FAINT_INK)
        for index, (explanation, found) in enumerate(zip(explanations, boxes, strict=True)):
            x = MARGIN + index * (SIDE + GAP)
            _image(sheet, explanation, found, Cell(x, top + TITLE, SIDE, SIDE))
            _closer_look(sheet, explanation, found, Cell(x, zoom_top, SIDE, ZOOM_HEIGHT))
        plot_width = (width - 2 * MARGIN - 1.6) / 2
        left = sheet.axes(Cell(MARGIN + 0.5, plot_top, plot_width, PLOT_HEIGHT))
        right = sheet.axes(Cell(MARGIN + 1.5 + plot_width, plot_top, plot_width, PLOT_HEIGHT))
        trained = [row for row in rows if row["accuracy"] is not None]
        _accuracy_by_tokens(left, trained, accuracy_by_patches)
        _accuracy_by_speed(right, trained, rows)
        return sheet.figure


def _image(sheet: Sheet, explanation: "Explanation", boxes: Sequence[Sequence[float]], cell: Cell) -> None:
    prediction = explanation.prediction
    answer, probability = prediction.top[0]
    truth = "" if prediction.correct in (True, None) else f", but it is {', '.join(prediction.truths)}"
    title = f"predicted {answer} ({probability:.0%}){truth}"
    _kept_and_found(sheet, explanation, boxes, cell, title)


def _closer_look(
    sheet: Sheet, explanation: "Explanation", boxes: Sequence[Sequence[float]], cell: Cell
) -> None:
    axes = _kept_and_found(sheet, explanation, boxes, cell, "")
    x0, y0, x1, y1 = boxes[0]
    # The part of the picture around the object, moved inside the picture; the axes count in patches.
    pixels = np.array([ZOOM * (x1 - x0), ZOOM * (x1 - x0) * cell.height / cell.width])
    size = np.array([explanation.picture_size[1], explanation.picture_size[0]])
    corner = np.clip(np.array([x0 + x1, y0 + y1]) / 2 - pixels / 2, 0, np.maximum(0, size - pixels))
    scale = np.array([explanation.patch_span[1], explanation.patch_span[0]]) / size
    (left, upper), (right, lower) = corner * scale, (corner + pixels) * scale
    axes.set(xlim=(left, right), ylim=(lower, upper))


def _kept_and_found(
    sheet: Sheet, explanation: "Explanation", boxes: Sequence[Sequence[float]], cell: Cell, title: str
) -> Axes:
    axes = panel_axes(explanation, sheet, cell, title, kept_picture(explanation))
    outline(axes, explanation.kept, width=1.2)
    draw_boxes(axes, explanation, boxes, width=2, color=TRUTH)
    return axes


def _accuracy_by_tokens(axes: Axes, rows: Sequence[dict], accuracy_by_patches: dict[int, float]) -> None:
    axes.set_title("Accuracy against tokens per image")
    numbers = sorted(accuracy_by_patches)
    axes.plot(
        numbers,
        [accuracy_by_patches[number] for number in numbers],
        color=ADAPTIVE,
        marker="o",
        markersize=4,
        linewidth=1.5,
        label="adaptive model with other numbers of patches",
    )
    _points(axes, rows, "tokens")
    axes.set_xlabel("tokens per image")
    _finish(axes)


def _accuracy_by_speed(axes: Axes, rows: Sequence[dict], all_rows: Sequence[dict]) -> None:
    axes.set_title("Accuracy against speed (preparing and classifying)")
    _points(axes, rows, "images_per_second")
    for row in all_rows:
        if row["accuracy"] is None:
            label = f"{row['name']}: {row['images_per_second']:.0f} images/s"
            axes.axvline(row["images_per_second"], color=FAINT_INK, linestyle=":", linewidth=1.2, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.set_xlabel("images per second")
    _finish(axes)


def _points(axes: Axes, rows: Sequence[dict], cost: str) -> None:
    colors = iter(OTHERS)
    for row in rows:
        adaptive = "adaptive" in row["name"]
        axes.scatter(
            row[cost],
            row["accuracy"],
            s=90 if adaptive else 60,
            marker="*" if adaptive else "s",
            color=ADAPTIVE if adaptive else next(colors),
            label=f"{row['name']}: {row['accuracy']:.0%}",
            zorder=3,
        )


def _finish(axes: Axes) -> None:
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.legend(loc="center", frameon=False, fontsize=8.5, bbox_to_anchor=(0.5, 0.36))
