"""Hidden states for the full grid, where the encoder had only some of it. Shape legend: `tokens.py`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .patches import ImagePatches
from .positions_base import interpolation_weights
from .reduction_base import restore_tokens
from .selection_base import Selection
from .tokens import put_tokens, raster_indices


@dataclass
class Stage:
    """What there is after some number of blocks.

    Attributes:
        prefix: `(B, T - M, D)` CLS, registers, and the tokens of a thumbnail.
        states: `(B, M, D)` of the tokens that stand for patches.
        num_reductions: how many reductions came before.
    """

    prefix: torch.Tensor
    states: torch.Tensor
    num_reductions: int

    def entered(self, reductions: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """States `(B, K, D)` of all patches that entered the encoder; see `restore_tokens`."""
        return restore_tokens(self.states, reductions[: self.num_reductions])


def fill_grid(
    patches: ImagePatches,
    selection: Selection,
    entered: torch.Tensor,
    context: torch.Tensor | None,
    thumbnails: ImagePatches | None,
    embed: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """Hidden states `(B, R*S, D)` for the full grid; patches that never arrived have zeros.

    Args:
        patches: all that arrived.
        selection: which of them entered.
        entered: `(B, K, D)` their states.
        context: `(B, T, D)` states of the thumbnail's tokens, which stand for patches that were not selected.
        thumbnails: where these are; None if there is no thumbnail.
        embed: what stands for them otherwise, `(B, N, D)`.
    """
    states, mask = entered, patches.mask
    if selection.indices is not None:
        if thumbnails is None:
            unseen = embed()
        else:
            source = thumbnails.view_grid
            weights = interpolation_weights(patches.coordinates, patches.grid, source, "linear")
            unseen = weights.to(context.dtype) @ context
        states = put_tokens(unseen, selection.indices, states, selection.mask)
    if patches.is_whole:
        return states
    nothing = states.new_zeros(states.shape[0], int(patches.grid.prod(dim=1).max()), states.shape[2])
    return put_tokens(nothing, raster_indices(patches.coordinates, patches.grid), states, mask)
