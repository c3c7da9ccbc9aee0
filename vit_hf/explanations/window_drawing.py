"""On which windows each stage of a Swin computed, side by side."""

from typing import TYPE_CHECKING

import numpy as np


# First, as it says what to do where matplotlib is missing.
from .sheets import FAINT_INK, Cell, Sheet  # isort: skip
from matplotlib.figure import Figure

from .panels import OBJECT, draw_boxes, outline, outline_width, panel_axes
from .shading import dim_dropped, enlarge
from .stage_drawing import TITLE_SIZE, draw_panels


if TYPE_CHECKING:
    from .results import Explanation
    from .windows import WindowStage


def draw_windows(explanation: "Explanation") -> Figure:
    notes = [
        f"Selector: {explanation.settings['selector']}. Pale: what no block of a stage computed on, and passed on as it "
        "came. Outlined: windows of blocks without shift."
    ]
    if any(stage.shifted is not None for stage in explanation.windows):
        notes.append("In the other colour: windows of blocks with shift.")
    return draw_panels(explanation, explanation.windows, _panel, " ".join(notes))


def _panel(explanation: "Explanation", stage: "WindowStage", sheet: Sheet, cell: Cell) -> None:
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
        draw_boxes(axes, explanation, explanation.boxes, width=1.0, colour=FAINT_INK)
