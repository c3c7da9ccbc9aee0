"""Where a patch is, told to the encoder. Shape legend: `tokens.py`.

Here are the encodings that add to patch embeddings, and the table of all.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .axes import has_frames, native_grid
from .options import Options, check_range, type_of
from .positions_base import (
    PositionEncoding,
    geometric_frequencies,
    interpolation_weights,
    linear_combinations,
    source_grid,
)
from .positions_bias import Alibi, RelativeBias, RelativeBiasContinuous
from .positions_rotary import Rotary, RotaryMixed, RotaryOptions
from .tokens import PatchTokens, grid_coordinates, raster_places


def sinusoid_1d(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoid `(..., dim)` at real `positions` `(...)`: sine and cosine in turn.

    "Attention Is All You Need" (Vaswani et al., 2017), section 3.5.
    """
    angles = positions.float().unsqueeze(-1) * geometric_frequencies(dim // 2, 10000.0, positions.device)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def sinusoid_2d(coordinates: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoid `(..., dim)` at `coordinates` `(..., 2)`: half for the row, half for the column.

    [sin(row), cos(row), sin(column), cos(column)], a quarter each, as MoCo v3 (Chen et al., 2021) and
    transformers' ViTMAE; MAE's own code has columns first.
    """
    frequencies = geometric_frequencies(dim // 4, 10000.0, coordinates.device)
    row, column = (axis.unsqueeze(-1) * frequencies for axis in coordinates.float().unbind(-1))
    return torch.cat((row.sin(), row.cos(), column.sin(), column.cos()), dim=-1)


def sinusoid_3d(coordinates: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoid `(..., dim)` at `coordinates` `(..., 3)`: a third each for time, row and column, as `sinusoid_2d`.

    Channels beyond a multiple of six stay zero.
    """
    frequencies = geometric_frequencies(dim // 6, 10000.0, coordinates.device)
    angles = [axis.unsqueeze(-1) * frequencies for axis in coordinates.float().unbind(-1)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=-1)
    return nn.functional.pad(table, (0, dim - table.shape[-1]))


def check_width(config, needed: int) -> None:
    """Checks that `hidden_size` is a multiple of what a sinusoid needs.

    Raises:
        ValueError: if it is not.
    """
    if config.hidden_size % needed:
        legal = "be even" if needed == 2 else f"be a multiple of {needed}"
        raise ValueError(
            f"position_encoding={type_of(config.position_encoding)!r} needs hidden_size to {legal}, got "
            f"{config.hidden_size}."
        )


def check_least_width(config) -> None:
    """Checks that each of three axes gets a sine and a cosine; channels beyond a multiple of six have no position.

    Raises:
        ValueError: if `hidden_size` is below 6.
    """
    if config.hidden_size < 6:
        raise ValueError(
            f"position_encoding={type_of(config.position_encoding)!r} needs a hidden_size of at least 6, got "
            f"{config.hidden_size}."
        )


class NoPosition(PositionEncoding):
    """A bag of patches."""


class Sinusoidal(PositionEncoding):
    """The sinusoid of "Attention Is All You Need" over the raster index; CLS is position 0, patches follow.

    A place between rows (a thumbnail's) has the index of some place in a row: `sinusoidal_2d` tells them apart.
    """

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_width(config, 2)

    def add(self, tokens: PatchTokens) -> PatchTokens:
        index = raster_places(tokens.coordinates, tokens.grid)
        table = sinusoid_1d(index + 1, tokens.features.shape[-1])
        return tokens.with_features(tokens.features + table.to(tokens.features.dtype))

    def add_to_cls(self, cls_token: torch.Tensor) -> torch.Tensor:
        position = torch.zeros(1, 1, device=cls_token.device)
        return cls_token + sinusoid_1d(position, cls_token.shape[-1]).to(cls_token.dtype)


class Sinusoidal2D(PositionEncoding):
    """Half of the channels for the row and half for the column, as MoCo v3 and MAE; nothing for CLS."""

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_width(config, 4)

    def add(self, tokens: PatchTokens) -> PatchTokens:
        table = sinusoid_2d(tokens.coordinates, tokens.features.shape[-1])
        return tokens.with_features(tokens.features + table.to(tokens.features.dtype))


class Sinusoidal3D(PositionEncoding):
    """A third of the channels each for time (or depth), row and column; nothing for CLS."""

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_least_width(config)

    def add(self, tokens: PatchTokens) -> PatchTokens:
        table = sinusoid_3d(tokens.coordinates, tokens.features.shape[-1])
        return tokens.with_features(tokens.features + table.to(tokens.features.dtype))


# Of `interpolation_weights`, by what torch calls the interpolation.
KERNELS = {"bicubic": "cubic", "bilinear": "linear"}


@strict
@dataclass(kw_only=True)
class LearnedOptions(Options):
    """How a learned table is resized.

    Args:
        interpolation: "bicubic" or "bilinear" (SigLIP 2).
        antialias: whether it is shrunk with antialiasing, as DINOv2 with registers and SigLIP 2.
    """

    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = False


class Learned(PositionEncoding):
    """A learned vector for each patch of the native grid, as ViT; elsewhere its interpolation, bicubic by default.

    At the full grid of another resolution this equals transformers' `interpolate_pos_encoding`: that of ViT
    and DINOv2 by default, that of DINOv2 with registers with `antialias`, and that of SigLIP 2 with
    `antialias` and "bilinear" interpolation. For videos and volumes the same kernel works along the third
    axis.
    """

    Options = LearnedOptions

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
        self.native_grid = native_grid(config)
        num_patches = math.prod(self.native_grid)
        self.kernel = KERNELS[self.options.interpolation]
        if self.options.antialias:
            self.kernel += "_antialias"
        # The name in transformers' ViT, so that its checkpoints fit: CLS first, then patches in raster order.
        self.num_cls = int(config.use_cls_token)
        self.position_embeddings = nn.Parameter(
            torch.empty(1, self.num_cls + num_patches, config.hidden_size)
        )

    def add(self, tokens: PatchTokens) -> PatchTokens:
        table = self.position_embeddings[0, self.num_cls :]
        if tokens.full_grid == self.native_grid:
            return tokens.with_features(tokens.features + table)  # the same to the bit, without the weights
        weights = interpolation_weights(tokens.coordinates, tokens.grid, self.native_grid, self.kernel)
        with torch.autocast(table.device.type, enabled=False):  # half precision would blur the table
            table = (weights @ table.float()).to(table.dtype)
        return tokens.with_features(tokens.features + table)

    def add_to_cls(self, cls_token: torch.Tensor) -> torch.Tensor:
        return cls_token + self.position_embeddings[:, :1]

    def resample_table(self, name: str, table: torch.Tensor, grid: tuple[int, ...] | None) -> torch.Tensor:
        size = table.shape[1] - self.num_cls
        grid = source_grid(size, grid, math.prod, len(self.native_grid))
        places = grid_coordinates(*self.native_grid, device=table.device)[None]
        own = torch.tensor([self.native_grid], device=table.device)
        weights = interpolation_weights(places, own, grid, self.kernel)
        return torch.cat((table[:, : self.num_cls], weights @ table[:, self.num_cls :]), dim=1)

    def reset_parameters(self, std: float) -> None:
        init.trunc_normal_(self.position_embeddings, mean=0.0, std=std)


class LearnedFromSinusoidal(Learned):
    """A learned table that starts as the sinusoid along two axes, or three, with zeros for CLS."""

    @classmethod
    def check(cls, config, options: Options) -> None:
        if has_frames(config):
            check_least_width(config)
        else:
            check_width(config, 4)

    def reset_parameters(self, std: float) -> None:
        init.copy_(self.position_embeddings, self._sinusoid())

    def _sinusoid(self) -> torch.Tensor:
        _, length, dim = self.position_embeddings.shape
        device = self.position_embeddings.device
        sinusoid = sinusoid_3d if len(self.native_grid) == 3 else sinusoid_2d
        patches = sinusoid(grid_coordinates(*self.native_grid, device=device), dim)
        return torch.cat((torch.zeros(self.num_cls, dim, device=device), patches)).view(1, length, dim)


@strict
@dataclass(kw_only=True)
class LearnedRotaryOptions(LearnedOptions, RotaryOptions):
    """Options of `"learned"` and of `"rotary"`."""


class LearnedRotary(Learned):
    """A learned table and rotation of queries and keys: `"learned"` and `"rotary"` with the options of both.

    EVA-02 (Fang et al., 2023).
    """

    Options = LearnedRotaryOptions

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
        self.rotary = Rotary(config, self.options)

    @classmethod
    def check(cls, config, options: Options) -> None:
        Rotary.check(config, options)

    def rotation(self, tokens: PatchTokens, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rotary.rotation(tokens, layer)


@strict
@dataclass(kw_only=True)
class FourierOptions(Options):
    """Learned features of `"fourier"`.

    Args:
        num_features: number of features, sines and cosines.
        scale: how far apart in patches they reach at first.
    """

    num_features: int = 128
    scale: float | int = 10.0

    def __post_init__(self):
        check_range(self, "scale", "above 0", 0 < self.scale < math.inf)
        is_even = self.num_features >= 2 and self.num_features % 2 == 0
        check_range(self, "num_features", "even and at least 2", is_even)


class Fourier(PositionEncoding):
    """A small network of learned Fourier features of the coordinates, in patches of the native grid.

    "Learnable Fourier Features for Multi-Dimensional Spatial Positional Encoding" (Li et al., 2021), section 3:
    W2 gelu(W1 [cos(W p), sin(W p)] / sqrt(F) + b1) + b2, with W drawn at first from a Gaussian of deviation 1 /
    `scale`. Nothing for CLS.
    """

    Options = FourierOptions

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
        self.native_grid = native_grid(config)
        self.scale = self.options.scale
        features = self.options.num_features
        self.frequencies = nn.Parameter(torch.empty(features // 2, len(self.native_grid)))
        self.hidden = nn.Linear(features, config.hidden_size)
        self.activation = nn.GELU()
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def add(self, tokens: PatchTokens) -> PatchTokens:
        native = torch.tensor(self.native_grid, device=tokens.grid.device) / tokens.grid[:, None]
        places = (tokens.coordinates.float() + 0.5) * native - 0.5
        angles = linear_combinations(places, self.frequencies)
        features = torch.cat((angles.cos(), angles.sin()), dim=-1) / self.hidden.in_features**0.5
        added = self.output(self.activation(self.hidden(features.to(self.hidden.weight.dtype))))
        return tokens.with_features(tokens.features + added)

    def reset_parameters(self, std: float) -> None:
        init.normal_(self.frequencies, mean=0.0, std=1 / self.scale)


POSITION_ENCODINGS: dict[str, type[PositionEncoding]] = {
    "learned": Learned,
    "learned_from_sinusoidal": LearnedFromSinusoidal,
    "learned_rotary": LearnedRotary,
    "sinusoidal": Sinusoidal,
    "sinusoidal_2d": Sinusoidal2D,
    "fourier": Fourier,
    "rotary": Rotary,
    "rotary_mixed": RotaryMixed,
    "alibi": Alibi,
    "relative_bias": RelativeBias,
    "relative_bias_continuous": RelativeBiasContinuous,
    "none": NoPosition,
}
# For videos and volumes alone.
VOLUME_ENCODINGS: dict[str, type[PositionEncoding]] = {"sinusoidal_3d": Sinusoidal3D}
