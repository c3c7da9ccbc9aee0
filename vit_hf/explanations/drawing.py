"""Figures of explanations: layout and drawing only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

# First: its error says how to install matplotlib.
from ..figures import (
    COLOR_BAR_SPACE,
    FAINT_INK,
    INK,
    MARGIN,
    SIDE,
    Cell,
    Sheet,
    format_size,
    house_style,
    shorten,
    wrap,
)


# isort: split
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ..overlays import color_groups, dim_dropped, enlarge, merged, pale, upper_limit
from .explanation import kept_picture


if TYPE_CHECKING:
    from .explanation import Explanation, Prediction
    from .stages import Stage, WindowStage


# In inches. Titles need MIN_COLUMN, however narrow the image.
STAGE_SIDE, WIDE_SIDE, MIN_COLUMN, GAP, TITLE = 2.6, 5.0, 2.5, 0.25, 0.3
# Colors that are rare in photos.
OUTLINE, OBJECT = "#00d9ff", "#ff4fd8"


def panel_axes(
    explanation: "Explanation", sheet: Sheet, cell: Cell, title: str, background: np.ndarray
) -> Axes:
    """Makes axes in units of patches, with a `background` that covers the whole picture."""
    rows, columns = explanation.patch_span
    axes = sheet.axes(cell)
    axes.imshow(background, extent=(0, columns, rows, 0), aspect="auto", interpolation="auto")
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    axes.set_title(title, color=INK)
    return axes


def outline_width(explanation: "Explanation", cell: Cell) -> float:
    """Returns the width, in points, of lines around patches in `cell`."""
    rows, columns = explanation.patch_span
    patch_points = 72 * min(cell.height / rows, cell.width / columns)
    return float(np.clip(0.12 * patch_points, 0.4, 1.5))


def outline(axes: Axes, values: np.ndarray, width: float, color: str = OUTLINE, beyond: int = 0) -> None:
    """Draws the borders between cells of `values` `(R, S)` that differ; `beyond` surrounds them."""
    padded = np.pad(values, 1, constant_values=beyond)
    segments = []
    for row, column in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        segments.append(((column, row), (column + 1, row)))
    for row, column in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        segments.append(((column, row), (column, row + 1)))
    axes.add_collection(LineCollection(segments, colors=color, linewidths=width, capstyle="projecting"))


def draw_boxes(
    axes: Axes,
    explanation: "Explanation",
    boxes: Sequence[Sequence[float]],
    width: float,
    color: str = OBJECT,
) -> None:
    """Outlines `boxes` [x0, y0, x1, y1], given in pixels of a picture of `picture_size`."""
    down, across = (
        span / size for span, size in zip(explanation.patch_span, explanation.picture_size, strict=True)
    )
    for x0, y0, x1, y1 in boxes:
        corner, size = (x0 * across, y0 * down), ((x1 - x0) * across, (y1 - y0) * down)
        axes.add_patch(
            Rectangle(
                corner,
                *size,
                fill=False,
                edgecolor=color,
                linewidth=width,
                # Visible on bright pixels, too.
                path_effects=[withStroke(linewidth=width + 0.8, foreground="#00000060")],
            )
        )


TITLE_SIZE = 9.5
GROUP_LINE = "#ffffffb0"


def draw_stages(explanation: "Explanation") -> Figure:
    return draw_panels(explanation, [None, *explanation.stages], _stage_panel, _stage_note(explanation))


def draw_panels(
    explanation: "Explanation",
    stages: Sequence[Any],
    panel: Callable[["Explanation", Any, Sheet, Cell], None],
    note: str,
) -> Figure:
    """Draws one `panel` for each of `stages`, and a `note` below."""
    aspect = explanation.picture_size[0] / explanation.picture_size[1]
    is_wide = aspect < 0.55
    height = (WIDE_SIDE if is_wide else STAGE_SIDE) * min(1, aspect)
    width = height / aspect
    column = max(width, MIN_COLUMN)
    num_panels = len(stages)
    # Rows of at most four panels, as even as possible.
    num_rows = -(-num_panels // (2 if is_wide else 4))
    num_columns = -(-num_panels // num_rows)
    sheet_width = num_columns * column + (num_columns - 1) * GAP + 2 * MARGIN
    caption = [
        shorten(explanation.name, sheet_width - 2 * MARGIN, size=8),
        *wrap(note, sheet_width - 2 * MARGIN, size=8),
    ]
    row_height = TITLE + height
    panels_height = num_rows * row_height + (num_rows - 1) * GAP / 2
    sheet = Sheet(sheet_width, MARGIN + panels_height + 0.1 + 0.15 * len(caption) + MARGIN)
    for index, stage in enumerate(stages):
        row, place = divmod(index, num_columns)
        top = MARGIN + row * (row_height + GAP / 2) + TITLE
        panel(explanation, stage, sheet, Cell(MARGIN + place * (column + GAP), top, width, height))
    sheet.write("\n".join(caption), MARGIN, MARGIN + panels_height + 0.1, size=8, color=FAINT_INK)
    return sheet.figure


def _stage_panel(explanation: "Explanation", stage: "Stage | None", sheet: Sheet, cell: Cell) -> None:
    """Draws the patches that entered the encoder, or those left after `stage`."""
    line = outline_width(explanation, cell)
    kept, total = len(explanation.kept_patches), explanation.grid[0] * explanation.grid[1]
    if stage is None:
        title = (
            f"before the encoder: {kept} of {total}" if kept < total else f"before the encoder: all {total}"
        )
        axes = panel_axes(explanation, sheet, cell, title, kept_picture(explanation))
        present = explanation.kept
    else:
        fused = stage.num_tokens - stage.num_groups
        left = f"{stage.num_groups} + {fused}" if fused else f"{stage.num_groups}"
        title = f"after block {stage.block}: {left} of {kept}"
        picture = color_groups(enlarge(explanation.picture), stage.groups, explanation.patch_span)
        axes = panel_axes(explanation, sheet, cell, title, picture)
        present = stage.groups >= 0
        together = merged(stage.groups)
        if together.any():
            outline(axes, np.where(together, stage.groups, -1), line / 2, GROUP_LINE, beyond=-1)
    axes.title.set_fontsize(TITLE_SIZE)
    if not present.all():
        outline(axes, present, line)


def _stage_note(explanation: "Explanation") -> str:
    notes = [f"Token reducer: {explanation.settings['reducer']}."]
    if any(merged(stage.groups).any() for stage in explanation.stages):
        notes.append("Merged patches have their mean color and a line around them.")
    if any(stage.num_tokens > stage.num_groups for stage in explanation.stages):
        notes.append("After the plus: tokens fused from dropped ones, which stand for no single patch.")
    return " ".join(notes)


def draw_windows(explanation: "Explanation") -> Figure:
    notes = [
        f"Selector: {explanation.settings['selector']}. Pale: passed on unchanged by all blocks of a "
        "stage. Outlined: windows of blocks without shift."
    ]
    if any(stage.shifted is not None for stage in explanation.windows):
        notes.append("In the other color: windows of blocks with shift.")
    return draw_panels(explanation, explanation.windows, _window_panel, " ".join(notes))


def _window_panel(explanation: "Explanation", stage: "WindowStage", sheet: Sheet, cell: Cell) -> None:
    seen = stage.chosen if stage.shifted is None else stage.chosen | stage.shifted
    picture = dim_dropped(enlarge(explanation.picture), seen, explanation.patch_span)
    title = f"stage {stage.stage}: {stage.num_chosen} of {stage.num_windows} windows"
    axes = panel_axes(explanation, sheet, cell, title, picture)
    axes.title.set_fontsize(TITLE_SIZE)
    line = max(outline_width(explanation, cell), 0.8)
    if stage.shifted is not None and not stage.shifted.all():
        outline(axes, stage.shifted, line, OBJECT)
    outline(axes, np.where(stage.chosen, stage.windows, -1), line, beyond=-1)
    if explanation.boxes is not None:
        draw_boxes(axes, explanation, explanation.boxes, width=1.0, color=FAINT_INK)


# From the palette of Okabe & Ito (2008), which is safe for color-blind readers.
BLUE, SKY, VERMILION = "#0072b2", "#9ecae9", "#d55e00"
HATCH_INK = "#9c9c9c"

# In inches.
GAP, ROW_GAP, PANEL_TITLE = 0.35, 0.1, 0.32
# Height of the name of an image above a single picture.
NAME_HEIGHT = 0.22
# Width of an overview of a wide image, whose panels are stacked.
WIDE = 10.5
# Room for the titles of panels and the names of classes where images are narrow or low.
MIN_PICTURE_COLUMN, MIN_COLUMN, CLASSES_HEIGHT = 2.8, 2.5, 1.6


@dataclass
class Layout:
    """Cells of the panels of an overview, in inches from their common top left corner."""

    cells: dict[str, Cell]
    width: float
    height: float


def draw_explanation(explanation: "Explanation", picture: str) -> Figure:
    """Draws one of `explanation.pictures`.

    Raises:
        ValueError: for any other picture.
    """
    if picture not in explanation.pictures:
        raise ValueError(
            f"There is no picture {picture!r} of {explanation.name}: choose one of "
            f"{explanation.pictures}. Scores need a patch selector in the model, windows a Swin with one, "
            "stages a token reducer; attention and rollout need blocks that see all kept patches, and "
            "rollout a sequence of at most max_rollout_tokens."
        )
    with house_style():
        whole_sheets = {"overview": _overview, "stages": draw_stages, "windows": draw_windows}
        if picture in whole_sheets:
            return whole_sheets[picture](explanation)
        return _single(explanation, picture)


def _single(explanation: "Explanation", picture: str) -> Figure:
    aspect = _aspect(explanation)
    height = SIDE * min(1, aspect)
    width = height / aspect
    sheet_width = max(width + COLOR_BAR_SPACE, MIN_PICTURE_COLUMN) + 2 * MARGIN
    notes = {"patches": _object_notes, "scores": _score_notes}.get(picture, _attention_notes)
    caption = wrap(" ".join(notes(explanation)), sheet_width - 2 * MARGIN, size=8)
    top = MARGIN + NAME_HEIGHT + PANEL_TITLE
    sheet = Sheet(sheet_width, top + height + 0.1 + 0.15 * len(caption) + MARGIN)
    name = shorten(explanation.name, sheet_width - 2 * MARGIN, size=14)
    sheet.write(name, MARGIN, MARGIN - 0.05, size=12, weight="bold")
    PANELS[picture](explanation, sheet, Cell(MARGIN, top, width, height))
    sheet.write("\n".join(caption), MARGIN, top + height + 0.1, size=8, color=FAINT_INK)
    return sheet.figure


def _overview(explanation: "Explanation") -> Figure:
    maps = [name for name in explanation.pictures if name in ("scores", "attention", "rollout")]
    aspect = _aspect(explanation)
    layout = _stacked(aspect, maps) if aspect < 0.55 else _side_by_side(aspect, maps)

    verdict, verdict_color = _verdict(explanation.prediction)
    facts = wrap(_facts(explanation), layout.width, size=9)
    notes = wrap(_notes(explanation), layout.width, size=8)
    top = MARGIN + 0.42 + (0.24 if verdict else 0) + 0.17 * len(facts) + 0.1
    sheet = Sheet(layout.width + 2 * MARGIN, top + layout.height + 0.12 + 0.15 * len(notes) + MARGIN)

    y = MARGIN
    sheet.write(_headline(explanation.prediction, layout.width), MARGIN, y, size=16, weight="bold")
    y += 0.42
    if verdict:
        sheet.write(
            shorten(verdict, layout.width, size=10.5), MARGIN, y - 0.06, size=10.5, color=verdict_color
        )
        y += 0.24
    sheet.write("\n".join(facts), MARGIN, y, size=9, color=FAINT_INK)
    for name, cell in layout.cells.items():
        PANELS[name](explanation, sheet, Cell(MARGIN + cell.x, top + cell.y, cell.width, cell.height))
    sheet.write("\n".join(notes), MARGIN, top + layout.height + 0.12, size=8, color=FAINT_INK)
    return sheet.figure


def _side_by_side(aspect: float, maps: list[str]) -> Layout:
    """Places the picture on the left, as high as two rows of panels on its right."""
    height = SIDE * min(1, aspect)
    picture = Cell(0, PANEL_TITLE, height / aspect, height)
    row_height = (height - ROW_GAP - PANEL_TITLE) / 2
    row_tops = (PANEL_TITLE, PANEL_TITLE + height - row_height)
    column = max(row_height / aspect + COLOR_BAR_SPACE, MIN_COLUMN)
    num_columns = 2 if len(maps) > 1 else 1
    first_left = max(picture.width, MIN_PICTURE_COLUMN) + GAP
    lefts = [first_left + index * (column + GAP) for index in range(num_columns)]
    places = [(left, top) for top in row_tops for left in lefts]
    cells = {"patches": picture}
    for name, (left, top) in zip(maps, places, strict=False):
        cells[name] = Cell(left, top, row_height / aspect, row_height)
    width = lefts[-1] + column
    left, top = places[len(maps)]
    cells["classes"] = Cell(left, top, width - left, PANEL_TITLE + height - top)
    return Layout(cells, width, PANEL_TITLE + height)


def _stacked(aspect: float, maps: list[str]) -> Layout:
    """Places a wide picture across the sheet, and the other panels two by two below."""
    cells = {"patches": Cell(0, PANEL_TITLE, WIDE, WIDE * aspect)}
    column = (WIDE - GAP) / 2
    map_width = column - COLOR_BAR_SPACE
    names = [*maps, "classes"]
    top = PANEL_TITLE + WIDE * aspect
    for first in range(0, len(names), 2):
        row = names[first : first + 2]
        height = max(CLASSES_HEIGHT if name == "classes" else map_width * aspect for name in row)
        for name, left in zip(row, (0, column + GAP), strict=False):
            is_map = name != "classes"
            size = (map_width, map_width * aspect) if is_map else (column, height)
            cells[name] = Cell(left, top + ROW_GAP + PANEL_TITLE, *size)
        top += ROW_GAP + PANEL_TITLE + height
    return Layout(cells, WIDE, top)


def _aspect(explanation: "Explanation") -> float:
    return explanation.picture_size[0] / explanation.picture_size[1]


def _headline(prediction: "Prediction", width: float) -> str:
    summary = prediction.summary
    certainty = summary.rindex(" (") if len(prediction.answers) == 1 else len(summary)
    # Bold characters are wider, and the name must not push the number off the sheet.
    return shorten(summary[:certainty], width - 1, size=20) + summary[certainty:]


def _verdict(prediction: "Prediction") -> tuple[str, str]:
    """Returns a text that compares the prediction with the truth, if known, and its color."""
    if prediction.truths is None:
        return "", INK
    truth = ", ".join(prediction.truths)
    if prediction.correct is None:
        return f"true value: {truth}", FAINT_INK
    return ("✓ correct", BLUE) if prediction.correct else (f"✗ wrong, true: {truth}", VERMILION)


def _facts(explanation: "Explanation") -> str:
    height, width = explanation.picture_size
    input_height, input_width = explanation.input_size
    rows, columns = explanation.grid
    size = f"{format_size(width, height)} pixels"
    if explanation.picture_size != explanation.input_size:
        size += f", given to the model as {format_size(input_width, input_height)}"
    settings = explanation.settings
    facts = [
        explanation.name,
        size,
        f"{format_size(columns, rows)} patches",
        f"selector: {settings['selector']}",
    ]
    if explanation.stages:
        numbers = [len(explanation.kept_patches), *(stage.num_tokens for stage in explanation.stages)]
        facts.append(f"reducer: {settings['reducer']}, {' to '.join(map(str, numbers))} tokens")
    facts.append(f"positions: {settings['position_encoding']}")
    # Lines break between facts, not in them.
    return "  ·  ".join(fact.replace(" ", "\N{NO-BREAK SPACE}") for fact in facts)


def _notes(explanation: "Explanation") -> str:
    notes = _object_notes(explanation)
    notes += _score_notes(explanation) + _attention_notes(explanation)
    if explanation.rollout is not None:
        notes.append(
            "Rollout traces attention through all blocks back to the patches (Abnar & Zuidema, 2020)."
        )
    return " ".join(notes)


def _object_notes(explanation: "Explanation") -> list[str]:
    if explanation.boxes is None or len(explanation.boxes) == 0:
        return []
    covered = explanation.statistics["object_covered"]
    return [f"Boxes: objects; kept patches cover {covered:.1%} of their area."]


def _score_notes(explanation: "Explanation") -> list[str]:
    """Explains the scale of the scores."""
    scores, kept = explanation.patch_scores, explanation.kept
    if scores is None:
        return []
    if explanation.selection_probabilities is not None:
        return ["Scores are the probability that training draws a patch first."]
    note = f"Scores reach from {np.nanmin(scores):.4g} to {np.nanmax(scores):.4g}"
    # Custom selectors may choose in another way.
    is_highest = not kept.all() and scores[kept].min() >= np.nanmax(scores[~kept], initial=-np.inf)
    return [f"{note}; the {kept.sum()} highest are kept." if is_highest else f"{note}."]


def _attention_notes(explanation: "Explanation") -> list[str]:
    if explanation.attention is None:
        return []
    note = "Attention is in multiples of its mean over the patches seen."
    if explanation.attention_block < explanation.settings["num_blocks"]:
        note += " It is from the last block before tokens are reduced."
    return [note if explanation.kept.all() else f"{note} Hatched patches were never seen by the encoder."]


def _patches_panel(explanation: "Explanation", sheet: Sheet, cell: Cell) -> None:
    kept, total = len(explanation.kept_patches), explanation.grid[0] * explanation.grid[1]
    title = (
        f"{kept} of {total} patches kept ({kept / total:.1%}), outlined"
        if kept < total
        else f"All patches kept: {total}"
    )
    axes = panel_axes(explanation, sheet, cell, title, kept_picture(explanation))
    if kept < total:
        outline(axes, explanation.kept, outline_width(explanation, cell))
    if explanation.boxes is not None:
        draw_boxes(axes, explanation, explanation.boxes, width=1.5)


def _scores_panel(explanation: "Explanation", sheet: Sheet, cell: Cell) -> None:
    title, scores = f"Scores: {explanation.settings['selector']}", explanation.patch_scores
    if explanation.selection_probabilities is not None:
        title, scores = "Probability to be drawn first", explanation.selection_probabilities
    gray = pale(enlarge(explanation.picture), contrast=1.0)
    axes = panel_axes(explanation, sheet, cell, title, gray)
    lowest, highest = float(scores[np.isfinite(scores)].min()), upper_limit(scores)
    limits = (lowest, highest) if highest > lowest else (lowest - 0.5, lowest + 0.5)
    _heat_map(axes, sheet, cell, scores, "viridis", limits, alpha=0.7)


def _attention_panel(explanation: "Explanation", sheet: Sheet, cell: Cell) -> None:
    block, num_blocks = explanation.attention_block, explanation.settings["num_blocks"]
    who = (
        "Mean attention of patches" if explanation.settings["pooling"] in ("mean", "map") else "CLS attention"
    )
    _seen_panel(explanation, sheet, cell, f"{who}, block {block} of {num_blocks}", explanation.attention)


def _rollout_panel(explanation: "Explanation", sheet: Sheet, cell: Cell) -> None:
    blocks = explanation.attention_block
    _seen_panel(explanation, sheet, cell, f"Attention rollout, blocks 1 to {blocks}", explanation.rollout)


def _seen_panel(explanation: "Explanation", sheet: Sheet, cell: Cell, title: str, values: np.ndarray) -> None:
    """Draws a map of the patches that the encoder saw, over hatching where it saw none."""
    rows, columns = explanation.patch_span
    axes = panel_axes(explanation, sheet, cell, title, pale(enlarge(explanation.picture), 0.22, 255))
    hatching = {"facecolor": "none", "edgecolor": HATCH_INK, "hatch": "/////", "linewidth": 0}
    axes.add_patch(Rectangle((0, 0), columns, rows, **hatching, zorder=1))
    mean = np.nanmean(values)
    values = values / mean if mean else values
    # From 0 to at least twice the mean, so that nearly even attention looks even.
    limits = (0.0, max(2.0, upper_limit(values)))
    _heat_map(axes, sheet, cell, values, "plasma", limits)


def _heat_map(
    axes: Axes,
    sheet: Sheet,
    cell: Cell,
    values: np.ndarray,
    colors: str,
    limits: tuple[float, float],
    alpha: float | None = None,
) -> None:
    """Colors the finite cells of `values` `(R, S)`, and draws a color bar on the right."""
    rows, columns = values.shape
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=colors,
        norm=Normalize(*limits),
        alpha=alpha,
        extent=(0, columns, rows, 0),
        aspect="auto",
        interpolation="nearest",
        zorder=2,
    )
    sheet.color_bar(image, cell, extend="max" if np.nanmax(values) > limits[1] else "neither")


def _classes_panel(explanation: "Explanation", sheet: Sheet, cell: Cell) -> None:
    """Draws bars of the most probable classes, or the values of a regression."""
    prediction = explanation.prediction
    axes = sheet.axes(cell)
    axes.set_axis_off()
    is_regression = prediction.probabilities is None
    axes.set_title("Predicted values" if is_regression else "Most probable classes", color=INK)
    row_height = min(0.42, cell.height / 5)
    axes.set(xlim=(0, cell.width), ylim=(cell.height, 0))
    for index, (name, value) in enumerate(prediction.top):
        y = 0.04 + index * row_height
        text = f"{value:.4g}" if is_regression else f"{value:.1%}"
        axes.text(
            0, y, shorten(name, cell.width - 0.7, size=9), fontsize=9, color=INK, verticalalignment="top"
        )
        axes.text(
            cell.width, y, text, fontsize=9, color=INK, verticalalignment="top", horizontalalignment="right"
        )
        if not is_regression:
            bar = (0, y + 0.17), cell.width, 0.06
            axes.add_patch(Rectangle(*bar, facecolor="#ececec", linewidth=0))
            color = BLUE if name in prediction.answers else SKY
            axes.add_patch(Rectangle(bar[0], cell.width * value, 0.06, facecolor=color, linewidth=0))


PANELS = {
    "patches": _patches_panel,
    "scores": _scores_panel,
    "attention": _attention_panel,
    "rollout": _rollout_panel,
    "classes": _classes_panel,
}
