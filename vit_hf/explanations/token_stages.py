"""What became of the patches inside the encoder, reduction by reduction.

Shapes: R, S rows and columns of the grid; K patches that entered; M tokens before a reduction.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from ..model.modeling_adaptive_vit import AdaptiveViTModel
from ..model.reducers import Reduction, TokenReducer


@dataclass
class Stage:
    """What a token reducer left.

    Attributes:
        block: number, from 1, of the block after which this holds.
        groups: `(R, S)` int64, for each patch the place, from 0, of the token that stands for it; -1 for a
            patch that none stands for, here or from the beginning. Patches with the same number were merged.
        num_tokens: how many go on. Those beyond the groups stand for no single patch: "attentive" fuses what
            it drops into one.
    """

    block: int
    groups: np.ndarray
    num_tokens: int

    @property
    def num_groups(self) -> int:
        return len(np.unique(self.groups[self.groups >= 0]))


def blocks_that_see_all(vit: AdaptiveViTModel) -> int:
    """How many blocks, from the first, attend to all patches that enter the encoder."""
    for index in sorted(map(int, vit.reducers)):
        reducer = vit.reducers[str(index)]
        if not reducer.keeps_all(0.0):
            return index + 1 if reducer.inside_block else index
    return len(vit.layers)


def reducers_of(encoder: PreTrainedModel) -> Mapping[str, TokenReducer]:
    """By the number of the block; a Swin has none."""
    return getattr(encoder, "reducers", {})


@contextmanager
def record_reductions(vit: AdaptiveViTModel) -> Iterator[dict[int, Reduction]]:
    """Collects what the reducers of the blocks, numbered from 0, made of the latest batch."""
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
    """The stages of one image, first to last.

    Args:
        records: see `record_reductions`; of a batch of one image.
        kept_patches: `(K,)` raster indices of the patches that entered.
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
    """After each reduction, which token stands for each of the K patches that entered, `(K,)` int64; -1 for
    none.

    Args:
        assignments: of each reduction, `(M,)` int64: which token stands for each of those before; -1 for
            none.
        num_patches: K. Tokens before the first reduction are these.
    """
    places, followed = np.arange(num_patches), []
    for assignment in assignments:
        places = np.where(places < 0, -1, assignment[places])
        followed.append(places)
    return followed


def place_groups(groups: np.ndarray, kept_patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """`groups` `(K,)` of the patches at raster indices `(K,)`, as `(R, S)` with -1 for the others."""
    full = np.full(grid[0] * grid[1], -1, dtype=np.int64)
    full[kept_patches] = groups
    return full.reshape(grid)
