"""Hidden states for the full grid, where the encoder had only some of it. Shape legend: `tokens.py`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .patches import ImagePatches
from .positions_base import interpolation_weights
from .selection_base import Selection
from .tokens import put_tokens, raster_indices


@dataclass
class Stage:
    """Hidden states after some number of blocks.

    Attributes:
        prefix: `(B, T - M, D)` CLS, registers, and the tokens of a thumbnail.
        states: `(B, K, D)` of all patches that entered the encoder; see `restore_tokens`.
    """

    prefix: torch.Tensor
    states: torch.Tensor


def fill_grid(
    patches: ImagePatches,
    selection: Selection,
    entered: torch.Tensor,
    context: torch.Tensor | None,
    context_grid: tuple[int, ...] | None,
    embed: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """Hidden states `(B, R*S, D)` for the full grid; patches that never arrived have zeros.

    Args:
        patches: all that arrived.
        selection: which of them entered.
        entered: `(B, K, D)` their states.
        context: `(B, T, D)` states of the thumbnail's tokens, which stand for patches that were not selected.
        context_grid: rows and columns of the thumbnail; None if there is none.
        embed: what stands for them otherwise, `(B, N, D)`.
    """
    states, mask = entered, patches.mask
    if selection.indices is not None:
        if context_grid is None:
            unseen = embed()
        else:
            weights = interpolation_weights(patches.coordinates, patches.grid, context_grid, "linear")
            unseen = weights.to(context.dtype) @ context
        states = put_tokens(unseen, selection.indices, states, selection.mask)
    if patches.is_whole:
        return states
    nothing = states.new_zeros(states.shape[0], int(patches.grid.prod(dim=1).max()), states.shape[2])
    return put_tokens(nothing, raster_indices(patches.coordinates, patches.grid), states, mask)
