"""Similarity of positions, as in Figure 7 (center) of the ViT paper (Dosovitskiy et al., 2020)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..model.options import type_of
from ..model.patches import PatchTokens, grid_coordinates
from ..model.positions import PositionEncoding
from ..model.pretrained import AdaptiveViTPreTrainedModel
from ..model.sizes import has_frames, to_pair


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class PositionSimilarity:
    """Similarity of positions on the native grid.

    Attributes:
        encoding: type of `config.position_encoding`.
        rows, columns: `(r,)` and `(s,)` int64 of the sampled patches.
        similarity: `(r, s, R, S)` float32, of each sampled patch to all; None if the encoding does not
            distinguish positions.
        measure: name of the measure.
    """

    encoding: str
    rows: np.ndarray
    columns: np.ndarray
    similarity: np.ndarray | None
    measure: str = "Cosine similarity"

    def figure(self) -> "Figure":
        """Draws the similarity as a mosaic with one tile for each sampled patch."""
        from .position_drawing import draw_positions

        return draw_positions(self)


@torch.no_grad()
def position_similarity(
    model: AdaptiveViTPreTrainedModel, max_tiles: int = 14, sampled_tiles: int = 7
) -> PositionSimilarity:
    """Compares the encodings of sampled patches with those of all patches on the native grid.

    The native grid is `image_size / patch_size`. Added encodings: cosine of the added vectors. Rotary
    encodings: dot product of one vector rotated to both positions in the first block, i.e. the mean cosine of
        the
    differences of their angles. Encodings that do both: mean of the two. Bias, mean over heads: its factor of
    attention in the first block, 1 for the position with the largest bias.

    Args:
        model: any adaptive ViT for images.
        max_tiles: up to this number of rows, or columns, all are compared.
        sampled_tiles: otherwise, number of rows, or columns, to sample evenly.

    Raises:
        ValueError: for a model for videos or volumes, whose grid has three axes.
    """
    config = model.config
    if has_frames(config):
        raise ValueError(
            f"num_frames={config.num_frames} gives the grid a third axis, and positions are compared on "
            "rows and columns: give a model for images."
        )
    image_size, patch_size = to_pair(config.image_size), to_pair(config.patch_size)
    grid = (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
    rows, columns = (
        np.arange(length)
        if length <= max_tiles
        else np.linspace(0, length - 1, sampled_tiles).round().astype(np.int64)
        for length in grid
    )
    encoding = model.base_model.embeddings.position_encoding
    similarity = _similarity(encoding, grid, config.hidden_size, model.device)  # (R * S, R * S)
    if similarity is not None:
        sampled = similarity.unflatten(0, grid)[rows][:, columns]  # (r, s, R * S)
        similarity = sampled.unflatten(-1, grid).cpu().numpy()
    measure = "Factor of attention" if encoding.has_bias else PositionSimilarity.measure
    return PositionSimilarity(type_of(config.position_encoding), rows, columns, similarity, measure)


def _similarity(
    encoding: PositionEncoding, grid: tuple[int, int], hidden_size: int, device: torch.device
) -> torch.Tensor | None:
    """Computes similarities `(R * S, R * S)`; None if the encoding does not distinguish positions."""
    coordinates = grid_coordinates(*grid, device=device)
    tokens = PatchTokens(
        features=torch.zeros(1, len(coordinates), hidden_size, device=device),
        coordinates=coordinates[None],
        grid=torch.tensor([grid], device=device),
        full_grid=grid,
    )
    if encoding.has_bias:
        bias = encoding.bias(tokens, 0, num_prefix=0)[0].float().mean(dim=0)
        return (bias - bias.amax(dim=-1, keepdim=True)).exp()
    vectors = encoding.add(tokens).features[0].float()
    rotation = encoding.rotation(tokens, 0)
    parts = [vectors] if vectors.any() else []
    if rotation is not None:  # cos a cos b + sin a sin b = cos(a - b)
        parts.append(torch.cat(rotation, dim=-1)[0].transpose(0, 1).flatten(1).float())
    parts = [nn.functional.normalize(part, dim=-1) for part in parts]
    return sum(part @ part.T for part in parts) / len(parts) if parts else None
