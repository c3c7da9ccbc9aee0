"""Feature maps of an image, blended from those of its tiles without seams.

Where tiles overlap, each counts by a raised cosine that falls to nothing at its border, where it knows least
of what is around; the weights of all tiles sum to one everywhere. Weights are products of one of the row and
one of the column, so each axis is worked out by itself.

Shapes: R, S rows and columns of cells in the map; r, s values down and across in a tile; T tiles; D channels.
"""

import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.utils import ModelOutput

from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.sizes import to_pair
from .tile_grid import TileGrid


# A tile's weight at its border, and beyond the center of its outermost values, where there is nothing to
# interpolate: it counts only where no other tile does better.
AT_BORDER, BEYOND_VALUES = 1e-6, 1e-12


class BlendedAxis:
    """Weights of each value of each tile along an axis in each cell of a map; they sum to one per cell.

    Values are interpolated linearly between their centers, so a map whose values change linearly stays as it
    is.

    Args:
        starts: first pixels of the tiles.
        tile: length of a tile in pixels.
        length: length of the axis in pixels.
        num_cells: number of cells of the map, of equal length; it is evaluated at their centers.
        num_values: number of evenly spaced values of each tile along this axis.
    """

    def __init__(self, starts: Sequence[int], tile: int, length: int, num_cells: int, num_values: int = 1):
        self.starts, self.tile, self.length = starts, tile, length
        self.num_cells, self.num_values = num_cells, num_values
        self.total = torch.zeros(num_cells, dtype=torch.float64)
        for start in starts:
            cells = self._cells(start)
            self.total[cells] += self._window(cells, start)

    def weights(self, index: int) -> tuple[slice, torch.Tensor]:
        """Returns the cells that a tile covers, and `(cells, num_values)` float64 weights of its values
        there."""
        start = self.starts[index]
        cells = self._cells(start)
        fractions = self._window(cells, start) / self.total[cells]
        positions = (self._centers(cells) - start) / self.tile * self.num_values - 0.5
        positions = positions.clamp(0, self.num_values - 1)
        lower = positions.floor().clamp(max=max(0, self.num_values - 2)).long()
        beyond = (positions - lower).unsqueeze(1)
        weights = torch.zeros(len(positions), self.num_values, dtype=torch.float64)
        weights.scatter_(1, lower[:, None], 1 - beyond)
        if self.num_values > 1:
            weights.scatter_(1, lower[:, None] + 1, beyond)
        return cells, fractions[:, None] * weights

    def matrix(self) -> torch.Tensor:
        """Returns `(num_cells, tiles)` float64 weights of tiles with one value each."""
        matrix = torch.zeros(self.num_cells, len(self.starts), dtype=torch.float64)
        for index in range(len(self.starts)):
            cells, weights = self.weights(index)
            matrix[cells, index] = weights[:, 0]
        return matrix

    def _cells(self, start: int) -> slice:
        """Cells whose centers, (cell + 1/2) * length / num_cells, lie in a tile; in integers, so that none is
        lost."""
        first, last = (2 * self.num_cells * place - self.length for place in (start, start + self.tile))
        return slice(
            max(0, -(-first // (2 * self.length))), min(self.num_cells, last // (2 * self.length) + 1)
        )

    def _centers(self, cells: slice) -> torch.Tensor:
        return (torch.arange(cells.start, cells.stop, dtype=torch.float64) + 0.5) * (
            self.length / self.num_cells
        )

    def _window(self, cells: slice, start: int) -> torch.Tensor:
        inset = self.tile / (2 * self.num_values) if self.num_values > 1 else 0.0
        place = (self._centers(cells) - start - inset) / (self.tile - 2 * inset)
        window = (torch.pi * place).sin().square().clamp(min=AT_BORDER)
        # Rounding may put a center a little beyond the first value that it is on.
        return torch.where((place > -1e-9) & (place < 1 + 1e-9), window, BEYOND_VALUES)


def blend_values(values: torch.Tensor, grid: TileGrid, size: tuple[int, int]) -> torch.Tensor:
    """Blends one value per tile, `(T,)`, to a map `(R, S)` float32.

    Args:
        size: R and S. Cells larger than tiles get the mean of what they cover.
    """
    matrices = []
    for starts, tile, length, num_cells in zip(
        (grid.tops, grid.lefts), grid.tile_size, grid.image_size, size, strict=True
    ):
        samples = max(1, math.ceil(4 * length / (num_cells * tile)))
        axis = BlendedAxis(starts, tile, length, num_cells * samples)
        matrices.append(axis.matrix().unflatten(0, (num_cells, samples)).mean(dim=1))
    down, across = matrices
    values = values.to(torch.float64).reshape(len(grid.tops), len(grid.lefts))
    return (down @ values @ across.T).float()


class BlendedFeatures:
    """A feature map of an image, to which the maps of its tiles are added one by one.

    As many cells to a pixel as the tiles have values, rounded to whole rows and columns of the image.

    Args:
        grid: positions of the tiles.
        tile_shape: D, r and s of the map of a tile.
        file: a `.npy` file to hold the map, `(R, S, D)` float32, where it is larger than memory; None for
            memory.
    """

    def __init__(
        self, grid: TileGrid, tile_shape: tuple[int, int, int], file: str | os.PathLike | None = None
    ):
        channels, *num_values = tile_shape
        self.size = tuple(
            max(1, round(length * number / tile))
            for length, number, tile in zip(grid.image_size, num_values, grid.tile_size, strict=True)
        )
        self.rows, self.columns = (
            BlendedAxis(starts, tile, length, num_cells, number)
            for starts, tile, length, num_cells, number in zip(
                (grid.tops, grid.lefts), grid.tile_size, grid.image_size, self.size, num_values, strict=True
            )
        )
        # Channels last, so that a tile is in few pages of a file.
        shape = (*self.size, channels)
        if file is None:
            self.buffer = torch.zeros(shape)
        else:
            self.buffer = torch.from_numpy(np.lib.format.open_memmap(file, "w+", np.float32, shape))

    def add(self, index: int, features: torch.Tensor) -> None:
        """Adds the map `(D, r, s)` of a tile, on any device and of any dtype."""
        row, column = divmod(index, len(self.columns.starts))
        rows, down = self.rows.weights(row)
        columns, across = self.columns.weights(column)
        features = features.float()
        down, across = down.to(features), across.to(features)  # (R', r), (S', s)
        self.buffer[rows, columns] += torch.einsum("Rr,drs,Ss->RSd", down, features, across).cpu()

    @property
    def feature_map(self) -> torch.Tensor:
        """Returns `(D, R, S)` float32, a view of the stored map."""
        return self.buffer.permute(2, 0, 1)


def run_with_patch_states(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> tuple[ModelOutput, torch.Tensor]:
    """Runs a model; returns its outputs and the states `(B, D, r, s)` of its patches.

    That is the last feature map of a backbone; `restored_hidden_state` of an AdaptiveViT, with or without a
    head, which has all patches regardless of selection and reduction; and `last_hidden_state` of others,
    without CLS and register tokens.

    Raises:
        TypeError: if the model has no such state, or none that is one for each place of the image.
    """
    if isinstance(model, BackboneMixin):
        outputs = model(**inputs)
        return outputs, _check(model, outputs.feature_maps[-1])
    recorded = []
    hook = model.base_model.register_forward_hook(lambda module, args, output: recorded.append(output))
    is_adaptive = model.config.model_type == AdaptiveViTConfig.model_type
    try:
        outputs = model(**inputs, **({"restore": True} if is_adaptive else {}))
    finally:
        hook.remove()
    if is_adaptive:
        rows, columns = recorded[-1].spatial_shapes[0].tolist()
        states = recorded[-1].restored_hidden_state.transpose(1, 2).unflatten(2, (rows, columns))
        return outputs, states
    states = getattr(recorded[-1], "last_hidden_state", None) if recorded else None
    if isinstance(states, torch.Tensor) and states.ndim == 3:
        states = _to_map(states, model.config, inputs["pixel_values"].shape[-2:])
    return outputs, _check(model, states)


def _to_map(states: torch.Tensor, config: object, input_size: tuple[int, int]) -> torch.Tensor | None:
    """Reshapes `(B, prefix + r*s, D)` to `(B, D, r, s)`; None if r and s are unknown."""
    patch_size = getattr(config, "patch_size", None)
    if patch_size is None:
        return None
    rows, columns = (side // patch for side, patch in zip(input_size, to_pair(patch_size), strict=True))
    # Stages of hierarchical models, such as Swin, halve the grid.
    while rows * columns > states.shape[1]:
        rows, columns = -(-rows // 2), -(-columns // 2)
    num_prefix = states.shape[1] - rows * columns
    return states[:, num_prefix:].transpose(1, 2).unflatten(2, (rows, columns))


def _check(model: PreTrainedModel, states: torch.Tensor | None) -> torch.Tensor:
    if not isinstance(states, torch.Tensor) or states.ndim != 4:
        raise TypeError(
            f"{type(model).__name__} has no states of patches in a grid, of which feature maps are made. "
            "Give a model whose base has last_hidden_state, as ViT, Swin and ResNet have, or an "
            "AutoBackbone; or feature_maps=False."
        )
    return states
