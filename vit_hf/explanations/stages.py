"""Records of the patches after each reduction in the encoder; for Swin, of the windows computed on.

Shapes: R, S rows and columns of the grid; K patches that entered the encoder; M tokens before a reduction.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from ..model.configuration_adaptive_swin import AdaptiveSwinConfig
from ..model.modeling_adaptive_swin import AdaptiveSwinImageClassifierOutput
from ..model.modeling_adaptive_vit import AdaptiveViTModel
from ..model.reducers import Reduction, TokenReducer
from ..model.swin_layers import fit_window, lay_out


@dataclass
class Stage:
    """Tokens left by one reduction.

    Attributes:
        block: number, from 1, of the block with the reduction.
        groups: `(R, S)` int64, index of the token that each patch belongs to; -1 for patches that were
            dropped, by this reduction or before. Merged patches have the same index.
        num_tokens: number of tokens left. Those beyond the groups stand for no single patch: "attentive"
            fuses the tokens that it drops into one.
    """

    block: int
    groups: np.ndarray
    num_tokens: int

    @property
    def num_groups(self) -> int:
        return len(np.unique(self.groups[self.groups >= 0]))


def blocks_that_see_all(vit: AdaptiveViTModel) -> int:
    """Counts the blocks, from the first, that attend to all patches that enter the encoder."""
    for index in sorted(map(int, vit.reducers)):
        reducer = vit.reducers[str(index)]
        if not reducer.keeps_all(0.0):
            return index + 1 if reducer.inside_block else index
    return len(vit.layers)


def reducers_of(encoder: PreTrainedModel) -> Mapping[str, TokenReducer]:
    """Returns the reducers by the index of their block; Swin has none."""
    return getattr(encoder, "reducers", {})


@contextmanager
def record_reductions(vit: AdaptiveViTModel) -> Iterator[dict[int, Reduction]]:
    """Collects the reductions of the latest batch, by the index of their block."""
    records: dict[int, Reduction] = {}

    def record(index: int):
        def hook(module, args, output):
            records[index] = output

        return hook

    handles = [
        reducer.register_forward_hook(record(int(index))) for index, reducer in reducers_of(vit).items()
    ]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def to_stages(records: dict[int, Reduction], kept_patches: np.ndarray, grid: tuple[int, int]) -> list[Stage]:
    """Converts the reductions of one image to stages, first to last.

    Args:
        records: reductions of a batch of one image, see `record_reductions`.
        kept_patches: `(K,)` raster indices of the patches that entered the encoder.
        grid: (R, S).
    """
    order = sorted(records)
    assignments = [records[index].assignment[0].cpu().numpy() for index in order]
    stages = []
    for index, groups in zip(order, follow(assignments, len(kept_patches)), strict=True):
        tokens = records[index].tokens
        counts = tokens.features.shape[1] if tokens.mask is None else int(tokens.mask[0].sum())
        stages.append(Stage(index + 1, place_groups(groups, kept_patches, grid), counts))
    return stages


def follow(assignments: Sequence[np.ndarray], num_patches: int) -> list[np.ndarray]:
    """Follows each of the K patches through all reductions.

    Args:
        assignments: for each reduction, `(M,)` int64: index of the token that each token before it became
            part of; -1 for none.
        num_patches: K, the number of tokens before the first reduction.

    Returns:
        For each reduction, `(K,)` int64: index of the token that each patch belongs to; -1 for none.
    """
    indices, followed = np.arange(num_patches), []
    for assignment in assignments:
        indices = np.where(indices < 0, -1, assignment[indices])
        followed.append(indices)
    return followed


def place_groups(groups: np.ndarray, kept_patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Puts `groups` `(K,)` at raster indices `kept_patches` `(K,)` of a grid `(R, S)`; -1 elsewhere."""
    full = np.full(grid[0] * grid[1], -1, dtype=np.int64)
    full[kept_patches] = groups
    return full.reshape(grid)


@dataclass
class WindowStage:
    """Windows that one stage of a Swin computed on.

    Attributes:
        stage: number, from 1.
        blocks: number of blocks.
        windows: `(R, S)` int64, index of the window of each patch in blocks without shift.
        chosen: `(R, S)` bool, True where blocks without shift computed.
        shifted: `(R, S)` bool, True where blocks with shift computed; None if there are none.
        num_chosen, num_windows: selected windows, and all windows.
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
    """Returns the stages for the first image of a batch, first to last; none without a selector."""
    if outputs.selected_windows is None:
        return []
    rows, columns = outputs.spatial_shapes[0].tolist()
    grid, stages = (rows, columns), []
    for stage, depth in enumerate(config.depths):
        fixed = config.window_fit == "fixed"
        window, shift = fit_window(grid, config.window_of(stage), config.shift_of(stage), fixed)
        # The cell of this stage that each patch became part of.
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
