"""Which windows a Swin computed on, as patches of the image.

Shapes: R, S rows and columns of the grid of patches.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..model.configuration_adaptive_swin import AdaptiveSwinConfig
from ..model.modeling_adaptive_swin import AdaptiveSwinImageClassifierOutput
from ..model.swin_layers import fit_window, lay_out


@dataclass
class WindowStage:
    """What one stage computed on.

    Attributes:
        stage: number, from 1.
        blocks: how many it has.
        windows: `(R, S)` int64, in which window of blocks without shift each patch lies.
        chosen: `(R, S)` bool, True where these blocks computed.
        shifted: `(R, S)` bool, the same of blocks with shift; None if there are none.
        num_chosen, num_windows: windows that were computed on, and all of them.
    """

    stage: int
    blocks: int
    windows: np.ndarray
    chosen: np.ndarray
    shifted: np.ndarray | None
    num_chosen: int
    num_windows: int


def window_stages(
    config: AdaptiveSwinConfig, outputs: AdaptiveSwinImageClassifierOutput
) -> list[WindowStage]:
    """The stages for the first image of a batch, first to last; none without a selector."""
    if outputs.selected_windows is None:
        return []
    rows, columns = outputs.spatial_shapes[0].tolist()
    grid, stages = (rows, columns), []
    for stage, depth in enumerate(config.depths):
        fixed = config.window_fit == "fixed"
        window, shift = fit_window(grid, config.window_of(stage), config.shift_of(stage), fixed)
        # The cell of this stage that each patch became a part of.
        row, column = np.arange(rows) // 2**stage, np.arange(columns) // 2**stage
        cells = row[:, None] * grid[1] + column
        found = []
        for step, chosen in (
            ((0, 0), outputs.selected_windows[stage]),
            (shift, outputs.selected_shifted_windows[stage]),
        ):
            layout = lay_out(grid, window, step, config.pad_before_shift, torch.device("cpu"))
            windows = (layout.places // layout.cells.shape[1]).numpy()[cells]
            found.append((windows, np.isin(windows, chosen[0].cpu().numpy()), layout.num_windows))
        has_shift = any(shift) and depth > 1
        stages.append(
            WindowStage(
                stage=stage + 1,
                blocks=depth,
                windows=found[0][0],
                chosen=found[0][1],
                shifted=found[1][1] if has_shift else None,
                num_chosen=outputs.selected_windows[stage].shape[1],
                num_windows=found[0][2],
            )
        )
        grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    return stages
