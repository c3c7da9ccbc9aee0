"""What is left of an image before the encoder and after each reduction inside it, side by side."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np


# First, as it says what to do where matplotlib is missing.
from .sheets import FAINT_INK, MARGIN, Cell, Sheet, shorten, wrap  # isort: skip
from matplotlib.figure import Figure

from .panels import kept_picture, outline, outline_width, panel_axes
from .shading import colour_groups, enlarge, merged


if TYPE_CHECKING:
    from .results import Explanation
    from .token_stages import Stage


# Inches. Titles need MIN_COLUMN, however narrow the image.
SIDE, WIDE_SIDE, MIN_COLUMN, GAP, TITLE = 2.6, 5.0, 2.5, 0.25, 0.3
TITLE_SIZE = 9.5
GROUP_LINE = "#ffffffb0"


def draw_stages(explanation: "Explanation") -> Figure:
    return draw_panels(explanation, [None, *explanation.stages], _panel, _note(explanation))


def draw_panels(
    explanation: "Explanation",
    stages: Sequence[Any],
    panel: Callable[["Explanation", Any, Sheet, Cell], None],
    note: str,
) -> Figure:
    """A `panel` of the picture for each of `stages`, and a `note` below."""
    aspect = explanation.picture_size[0] / explanation.picture_size[1]
    is_wide = aspect < 0.55
    height = (WIDE_SIDE if is_wide else SIDE) * min(1, aspect)
    width = height / aspect
    column = max(width, MIN_COLUMN)
    num_panels = len(stages)
    # Rows as even as they can be, of at most four.
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
    sheet.write("\n".join(caption), MARGIN, MARGIN + panels_height + 0.1, size=8, colour=FAINT_INK)
    return sheet.figure


def _panel(explanation: "Explanation", stage: "Stage | None", sheet: Sheet, cell: Cell) -> None:
    """The patches that entered the encoder, or what `stage` left of them."""
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
        picture = colour_groups(enlarge(explanation.picture), stage.groups, explanation.patch_span)
        axes = panel_axes(explanation, sheet, cell, title, picture)
        present = stage.groups >= 0
        together = merged(stage.groups)
        if together.any():
            outline(axes, np.where(together, stage.groups, -1), line / 2, GROUP_LINE, beyond=-1)
    axes.title.set_fontsize(TITLE_SIZE)
    if not present.all():
        outline(axes, present, line)


def _note(explanation: "Explanation") -> str:
    notes = [f"Token reducer: {explanation.settings['reducer']}."]
    if any(merged(stage.groups).any() for stage in explanation.stages):
        notes.append("Patches that were merged have their mean colour and a line around them.")
    if any(stage.num_tokens > stage.num_groups for stage in explanation.stages):
        notes.append("After the plus: tokens that stand for no single patch, fused from those dropped.")
    return " ".join(notes)
