"""Position encodings: they add to patch embeddings, rotate queries and keys, or add a bias to attention.

T = num_prefix + N tokens of a sequence, the last N of patches. The table of all stands at the end.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .layers import Initialized
from .options import Options, check_range, read_options, type_of
from .patches import PatchTokens, flatten_coordinates, format_size, grid_coordinates
from .sizes import has_frames, head_dim_of, native_grid


class Positions(NamedTuple):
    """Positions as the embeddings use them (`features`, `cls_token`), or the attention of a block (the
    others).

    Attributes:
        features: `(B, N, D)` patch embeddings with positions added.
        cls_token: `(1, 1, D)` CLS token with its position added; None if none was given.
        rotation: cosines and sines, see `PositionEncoding.rotation`; None for none.
        bias: see `PositionEncoding.bias`; None for none.
    """

    features: torch.Tensor | None = None
    cls_token: torch.Tensor | None = None
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None
    bias: torch.Tensor | None = None


def source_grid(
    size: int, grid: tuple[int, ...] | None, size_of: Callable[[tuple[int, ...]], int], num_axes: int
) -> tuple[int, ...]:
    """The grid of a table: the checkpoint's native one if it fits, or else the square one that does.

    Args:
        size: entries of the table.
        grid: of the checkpoint's configuration; None if unknown.
        size_of: entries of a grid's table.
        num_axes: of the model.

    Raises:
        ValueError: if neither fits.
    """
    if grid is not None and size_of(grid) == size:
        return grid
    for side in range(1, math.isqrt(size) + 2) if num_axes == 2 else ():
        if size_of((side, side)) == size:
            return side, side
    raise ValueError(
        f"The checkpoint's table of positions has {size} entries, which are those of no square "
        "grid, nor of the "
        f"{format_size(grid) if grid else 'unknown'} patches that its configuration says. Set "
        "image_size and patch_size in its "
        "config.json to those it was trained with, and load it without image_size: any size of "
        "image works then."
    )


def linear_combinations(places: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Angles `(..., F)` at `places` `(..., A)`: the product with `frequencies` `(..., F, A)`, always in
    float32.

    As a matrix product it would run in half precision under autocast, where the places of neighbors coincide.
    """
    terms = zip(places.float().unbind(-1), frequencies.float().unbind(-1), strict=True)
    return sum(place.unsqueeze(-1) * frequency for place, frequency in terms)


class PositionEncoding(Initialized, nn.Module):
    """Adds positions to embeddings, rotates queries and keys, or adds a bias to attention.

    A class overrides `add`, `add_to_cls`, `rotation` or `bias`; what it leaves out changes nothing. All are
    evaluated at coordinates, which may be fractional, so any resolution and any subset of patches works. An
    encoding without parameters is computed and never stored: a buffer could go stale when a checkpoint is
    loaded.

    An encoding with a parameter that is sized by the native grid has a method `resample_table(name, table,
    grid)`, which returns the float32 `table` of another `grid` (None if unknown) as that of its own: for
    `from_pretrained(image_size=...)`.
    """

    # Whether rotation or bias differ from block to block.
    per_layer = False
    # Whether there is a bias, which flash attention cannot take.
    has_bias = False
    # True if learned weights hold for one native grid alone, as lengths in its patches do:
    # `from_pretrained` then refuses another `image_size`.
    holds_for_native_grid = False

    # Dataclass of the options that `position_encoding={"type": ..., ...}` may give.
    Options: ClassVar[type] = Options

    def __init__(self, config, options: Options | None = None):
        """Reads the options from `config.position_encoding` unless they are given."""
        super().__init__()
        self.options = options or read_options(self.Options, "position_encoding", config.position_encoding)

    @classmethod
    def check(cls, config, options: Options) -> None:
        """Raises: ValueError if the encoding or its options do not fit the rest of the configuration."""

    def forward(
        self,
        tokens: PatchTokens,
        layer: int | None = None,
        num_prefix: int = 0,
        cls_token: torch.Tensor | None = None,
    ) -> Positions:
        """Positions of `tokens`. The model calls the module, so that whatever wraps it (offloading) takes
        part.

        Args:
            tokens: patch embeddings; or, with a `layer`, the tokens of the sequence that have coordinates.
            layer: index of the block whose attention needs positions; None for the embeddings.
            num_prefix: tokens of the sequence before `tokens`.
            cls_token: `(1, 1, D)`, for the embeddings.

        Raises:
            ValueError: if the `add` of a class returns features of another shape.
        """
        if layer is not None:
            return Positions(rotation=self.rotation(tokens, layer), bias=self.bias(tokens, layer, num_prefix))
        added = self.add(tokens)
        shape = getattr(getattr(added, "features", None), "shape", None)
        if shape != tokens.features.shape:
            raise ValueError(
                f"{type(self).__name__}.add must return the tokens with features of the shape "
                f"{tuple(tokens.features.shape)}, by tokens.with_features(...), got "
                f"{type(added).__name__ if shape is None else tuple(shape)}."
            )
        return Positions(added.features, None if cls_token is None else self.add_to_cls(cls_token))

    @staticmethod
    def grid_in(config) -> tuple[int, ...]:
        """The grid that a configuration sizes tables by: the native one, unless a class says another."""
        return native_grid(config)

    def add(self, tokens: PatchTokens) -> PatchTokens:
        """Patch embeddings with what is to be added at their coordinates."""
        return tokens

    def add_to_cls(self, cls_token: torch.Tensor) -> torch.Tensor:
        """CLS token `(1, 1, D)` with what is to be added to it."""
        return cls_token

    def rotation(self, tokens: PatchTokens, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Cosines and sines `(B, 1 or heads, N, head_dim)` by which a block's queries and keys are
        rotated."""
        return None

    def bias(self, tokens: PatchTokens, layer: int, num_prefix: int) -> torch.Tensor | None:
        """Bias added to a block's attention logits, `(B or 1, heads, T, T)`, T = num_prefix + N."""
        return None


def interpolation_weights(
    coordinates: torch.Tensor,
    grid: torch.Tensor,
    source: tuple[int, ...],
    kernel: str,
) -> torch.Tensor:
    """Weights of the cells of a `source` grid at `coordinates` of an image's `grid`, `(B, N, rows *
    columns)`.

    A matrix product with these weights equals `torch.nn.functional.interpolate(..., align_corners=False)` of
    the source (of three axes, trilinear, or cubic along each) to the full grid, read at the coordinates; but
    no full grid is ever made, and each image of a batch may have its own.

    Args:
        coordinates: `(B, N, A)`, see `PatchTokens`.
        grid: `(B, A)` rows and columns.
        source: rows and columns of what is interpolated, A sides.
        kernel: "cubic" (A = -0.75, torch's bicubic) or "linear"; either with "_antialias", as torch's
            `antialias=True`.
    """
    scale = torch.tensor(source, device=coordinates.device) / grid  # (B, A)
    position = (coordinates.float() + 0.5) * scale[:, None] - 0.5  # (B, N, A) in cells of the source
    weights, *others = (
        _axis_weights(position[..., axis], side, kernel, scale[:, axis : axis + 1])
        for axis, side in enumerate(source)
    )
    for of_axis in others:
        weights = (weights.unsqueeze(-1) * of_axis.unsqueeze(-2)).flatten(-2)
    return weights


def _axis_weights(position: torch.Tensor, length: int, kernel: str, scale: torch.Tensor) -> torch.Tensor:
    """Weights `(B, N, length)` of the cells along one axis; taps beyond the border count for the border
    cell."""
    cells = torch.arange(length, device=position.device)
    if kernel.endswith("_antialias"):
        # The kernel is as wide as a cell of the target, and cut off at the border.
        distance = (position.unsqueeze(-1) - cells).abs() / scale.clamp(min=1).unsqueeze(-1)
        if kernel == "linear_antialias":
            weights = (1 - distance).clamp(min=0)
        else:
            weights = torch.where(distance < 2, _cubic(distance, a=-0.5), 0)
        return weights / weights.sum(dim=-1, keepdim=True)
    first = position.floor()
    offset = position - first
    if kernel == "linear":
        taps = {0: 1 - offset, 1: offset}
    else:
        taps = {tap: _cubic((tap - offset).abs()) for tap in (-1, 0, 1, 2)}
    weights = 0
    for tap, weight in taps.items():
        cell = (first + tap).clamp(0, length - 1)
        weights = weights + weight.unsqueeze(-1) * (cell.unsqueeze(-1) == cells)
    return weights


def _cubic(distance: torch.Tensor, a: float = -0.75) -> torch.Tensor:
    """Cubic convolution (Keys, 1981) with torch's parameter."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)


def geometric_frequencies(count: int, base: float, device: torch.device) -> torch.Tensor:
    """base^(-i / count) for i = 0, ..., count - 1."""
    return torch.exp(-math.log(base) / count * torch.arange(count, device=device))


@strict
@dataclass(kw_only=True)
class RotaryOptions(Options):
    """Options of encodings that rotate queries and keys.

    Args:
        base: base of the frequencies; the slowest has a wavelength of about 2 pi times the base, in
            `coordinates`. DINOv3 has 100, EVA-02 10000, RoPE-Mixed 10.
        coordinates: unit of the coordinates: "patches"; "native", patches of the native grid, over which the
            image is spread (EVA-02); "normalized", from -1 to 1 over the image, times 2 pi (DINOv3).
        shift, jitter, rescale: while training, largest shift of the coordinates, and largest factor of each
            axis, and of both (DINOv3); None for none.
        reference_grid: rows and columns (of videos time, rows and columns) that "native" spreads over an
            image, by default those of `image_size`. EVA-02 pretrained at 16 counts 16 at 448 pixels too.
    """

    base: float | int = 100.0
    coordinates: Literal["patches", "native", "normalized"] = "patches"
    shift: float | int | None = None
    jitter: float | int | None = None
    rescale: float | int | None = None
    reference_grid: int | list[int] | tuple[int, ...] | None = None

    def __post_init__(self):
        check_range(self, "base", "above 0", 0 < self.base < math.inf)
        check_range(self, "shift", "0 or more, or None", self.shift is None or 0 <= self.shift < math.inf)
        for name in ("jitter", "rescale"):
            factor = getattr(self, name)
            legal = "a factor of at least 1, or None"
            check_range(self, name, legal, factor is None or 1 <= factor < math.inf)


class Rotary(PositionEncoding):
    """Queries and keys rotated by row and column, half of each head for each (RoPE).

    Axial rotary embedding: RoFormer (Su et al., 2021) along rows and columns.

    Of videos and volumes a third each is for time, row and column; what head_dim has beyond a multiple of six
    stays as it is, as in V-JEPA 2 (Assran et al., 2025).

    Queries and keys are rotated by their coordinates, so attention sees differences of places. In
    `coordinates` "patches", distances mean the same at every resolution; in "native" and "normalized" ones,
    an image does. While training, each batch may be shifted, jittered and rescaled (DINOv3, Siméoni et al.,
    2025).
    """

    Options = RotaryOptions

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
        self.head_dim = head_dim_of(config)
        self.base = self.options.base
        self.coordinates = self.options.coordinates
        self.augmentation = (self.options.shift, self.options.jitter, self.options.rescale)
        reference = self.options.reference_grid or native_grid(config)
        self.reference_grid = (reference, reference) if isinstance(reference, int) else tuple(reference)
        self.num_axes = len(self.reference_grid)

    @classmethod
    def check(cls, config, options: Options) -> None:
        name, head_dim, num_axes = type_of(config.position_encoding), head_dim_of(config), 2
        if has_frames(config):
            num_axes = 3
            if head_dim < 6 or head_dim % 2:
                raise ValueError(
                    f"position_encoding={name!r} turns pairs of channels along three axes, and "
                    "needs hidden_size / "
                    f"num_attention_heads to be even and at least 6, got {head_dim}."
                )
        elif head_dim % 4:
            raise ValueError(
                f"position_encoding={name!r} needs the channels of a head (hidden_size / "
                "num_attention_heads, or "
                f"head_dim) to be a multiple of 4, got {head_dim}."
            )
        reference = options.reference_grid
        sides = [reference] * 2 if isinstance(reference, int) else reference
        if reference is not None and (len(sides) != num_axes or min(sides) < 1):
            legal = "a number of at least 1 patch a side or a pair (rows, columns) of them"
            if num_axes == 3:
                legal = "three numbers of at least 1 patch (time, rows, columns)"
            raise ValueError(f"reference_grid={reference} must be {legal}, or None for those of image_size.")

    def rotation(self, tokens: PatchTokens, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        places = self.places(tokens)
        count = self.head_dim // (2 * self.num_axes)
        frequencies = geometric_frequencies(count, self.base, places.device)
        angles = (places.unsqueeze(-1) * frequencies).flatten(-2)  # (B, N, head_dim / 2)
        if angles.shape[-1] < self.head_dim // 2:
            angles = nn.functional.pad(angles, (0, self.head_dim // 2 - angles.shape[-1]))
        return self._by_angles(angles.unsqueeze(1), tokens.features.dtype)

    def places(self, tokens: PatchTokens) -> torch.Tensor:
        """Coordinates `(B, N, A)` in the units that are asked for."""
        places, grid = tokens.coordinates.float(), tokens.grid[:, None]
        if self.coordinates == "native":
            return places * (torch.tensor(self.reference_grid, device=places.device) / grid)
        if self.coordinates == "normalized":
            return 2 * math.pi * self._augmented((places + 0.5) / grid * 2 - 1)
        return self._augmented(places)

    def _augmented(self, places: torch.Tensor) -> torch.Tensor:
        shift, jitter, rescale = self.augmentation
        if not self.training:
            return places
        if shift:
            places = places + places.new_empty(self.num_axes).uniform_(-shift, shift)
        for factor, axes in ((jitter, self.num_axes), (rescale, 1)):
            if factor:
                limit = math.log(factor)
                places = places * places.new_empty(axes).uniform_(-limit, limit).exp()
        return places

    @staticmethod
    def _by_angles(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class RotaryMixed(Rotary):
    """Rotary embedding with learned frequencies that mix rows and columns (RoPE-Mixed).

    Each block and head has its own. RoPE-Mixed is from "Rotary Position Embedding for Vision Transformer"
    (Heo et al., 2024), section 3: angles are f_row * row + f_column * column (+ f_time * time). They start
    with the axial frequencies in a random direction for each head.
    """

    per_layer = True

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
        shape = (config.num_hidden_layers, config.num_attention_heads, self.num_axes, self.head_dim // 2)
        self.frequencies = nn.Parameter(torch.empty(shape))

    def rotation(self, tokens: PatchTokens, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        places = self.places(tokens).unsqueeze(1)  # (B, 1, N, A)
        frequencies = self.frequencies[layer].mT.unsqueeze(1)  # (heads, 1, head_dim / 2, A)
        return self._by_angles(linear_combinations(places, frequencies), tokens.features.dtype)

    def reset_parameters(self, std: float) -> None:
        if self.num_axes == 3:
            init.copy_(self.frequencies, self._rotated_axes())
            return
        layers, heads, _, channels = self.frequencies.shape
        magnitude = geometric_frequencies(channels // 2, self.base, self.frequencies.device)
        direction = 2 * math.pi * torch.rand(layers, heads, 1, device=self.frequencies.device)
        directions = torch.stack((direction, direction + math.pi / 2), dim=-1)  # (L, heads, 1, 2)
        rows = (magnitude[:, None] * directions.cos()).transpose(-1, -2).flatten(-2)
        columns = (magnitude[:, None] * directions.sin()).transpose(-1, -2).flatten(-2)
        init.copy_(self.frequencies, torch.stack((rows, columns), dim=2))

    def _rotated_axes(self) -> torch.Tensor:
        """Three axes at right angles, turned at random in each head, with the axial frequencies along
        each."""
        layers, heads, _, channels = self.frequencies.shape
        device = self.frequencies.device
        magnitude = geometric_frequencies(self.head_dim // 6, self.base, device)
        axes = torch.linalg.qr(torch.randn(layers, heads, 3, 3, device=device)).Q
        turned = (axes.unsqueeze(-1) * magnitude).flatten(-2)  # (L, heads, 3, 3 * (head_dim // 6))
        return nn.functional.pad(turned, (0, channels - turned.shape[-1]))


class AttentionBias(PositionEncoding):
    """A bias that depends on the differences of positions."""

    has_bias = True

    def bias(self, tokens: PatchTokens, layer: int, num_prefix: int) -> torch.Tensor:
        coordinates, grid = tokens.coordinates.float(), tokens.grid
        if tokens.full_grid is not None:  # the same for all images
            coordinates, grid = coordinates[:1], grid[:1]
        differences = coordinates[:, :, None] - coordinates[:, None]  # (B, N, N, A), query minus key
        bias = self.pairs(differences, grid, layer)
        return self.with_prefix(bias, layer, num_prefix).to(tokens.features.dtype)

    def pairs(self, differences: torch.Tensor, grid: torch.Tensor, layer: int) -> torch.Tensor:
        """Bias `(B, heads, N, N)` of patches.

        Args:
            differences: `(B, N, N, A)`, place of the query minus that of the key, in patches.
            grid: `(B, A)`.
        """
        raise NotImplementedError

    def with_prefix(self, bias: torch.Tensor, layer: int, num_prefix: int) -> torch.Tensor:
        """`(B, heads, T, T)`; tokens without a place have no bias."""
        return nn.functional.pad(bias, (num_prefix, 0, num_prefix, 0))


class Alibi(AttentionBias):
    """A fixed bias lowers attention with distance, at a rate of its own in each head.

    ALiBi (Press et al., 2022, "Train Short, Test Long") with Euclidean distances, as in CROMA (Fuller et al.,
    2023): -m |query - key|, m = 2^(-8 h / heads) for h = 1, ..., heads.
    """

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
        self.heads = config.num_attention_heads

    def pairs(self, differences: torch.Tensor, grid: torch.Tensor, layer: int) -> torch.Tensor:
        head = torch.arange(1, self.heads + 1, device=differences.device)
        slopes = torch.exp2(-8 * head / self.heads)
        return -slopes[:, None, None] * torch.linalg.vector_norm(differences, dim=-1).unsqueeze(1)


@strict
@dataclass(kw_only=True)
class RelativeBiasOptions(Options):
    """Options of learned biases.

    Args:
        shared: whether all blocks share one table or network, instead of each having its own.
    """

    shared: bool = True


class RelativeBias(AttentionBias):
    """A learned attention bias for each head and difference of positions (BEiT, Swin).

    BEiT (Bao et al., 2022). At another resolution the table is interpolated linearly, as transformers' BEiT
    does. Three more numbers are for pairs with a token without a position: query, key, or both.
    """

    Options = RelativeBiasOptions

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
        self.native_grid = native_grid(config)
        self.per_layer = not self.options.shared
        tables = config.num_hidden_layers if self.per_layer else 1
        self.extent = tuple(2 * side - 1 for side in self.native_grid)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(tables, math.prod(self.extent) + 3, config.num_attention_heads)
        )

    def pairs(self, differences: torch.Tensor, grid: torch.Tensor, layer: int) -> torch.Tensor:
        table = self._table(layer)[:-3].float()
        return sample_bias_table(table.T.unflatten(1, self.extent), differences, grid)

    def with_prefix(self, bias: torch.Tensor, layer: int, num_prefix: int) -> torch.Tensor:
        from_prefix, to_prefix, inside = self._table(layer)[-3:].float()
        bias = nn.functional.pad(bias, (num_prefix, 0, num_prefix, 0))
        is_prefix = torch.arange(bias.shape[-1], device=bias.device) < num_prefix
        query, key = is_prefix[:, None], is_prefix[None]
        for pairs, value in ((query & ~key, from_prefix), (~query & key, to_prefix), (query & key, inside)):
            bias = torch.where(pairs, value[:, None, None], bias)
        return bias

    def reset_parameters(self, std: float) -> None:
        init.zeros_(self.relative_position_bias_table)

    def resample_table(self, name: str, table: torch.Tensor, grid: tuple[int, ...] | None) -> torch.Tensor:
        differences, special = table[:, :-3], table[:, -3:]
        grid = source_grid(differences.shape[1], grid, num_differences, len(self.native_grid))
        mode = "bilinear" if len(self.native_grid) == 2 else "trilinear"
        return torch.cat((resample_differences(differences, grid, self.native_grid, mode), special), dim=1)

    def _table(self, layer: int) -> torch.Tensor:
        return self.relative_position_bias_table[layer if self.per_layer else 0]


class RelativeBiasContinuous(AttentionBias):
    """A small network computes the bias from log-spaced differences of positions.

    SwinV2 (Liu et al., 2022, "Swin Transformer V2"), section 3.3: sign(d) log2(1 + 8 |d| / (side - 1)) / 3 of
    both axes, 512 hidden units, 16 sigmoid. The side is that of the native grid, so that positions beyond
    it are extrapolated little. The network is evaluated at whole differences and interpolated linearly
    between them (compiled models evaluate it for every pair).
    """

    Options = RelativeBiasOptions
    holds_for_native_grid = True

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
        self.native_grid = native_grid(config)
        self.per_layer = not self.options.shared
        self.networks = nn.ModuleList(
            bias_network(config.num_attention_heads, len(self.native_grid))
            for _ in range(config.num_hidden_layers if self.per_layer else 1)
        )

    def pairs(self, differences: torch.Tensor, grid: torch.Tensor, layer: int) -> torch.Tensor:
        network = self.networks[layer if self.per_layer else 0]
        if torch.compiler.is_compiling():  # how large the table must be is not known then
            return continuous_bias(network, differences, self.native_grid).permute(0, 3, 1, 2)
        # One more: a thumbnail's places may be farther apart than those of patches.
        sides = (grid.amax(dim=0) + 1).tolist()
        axes = [torch.arange(1 - side, side, device=grid.device).float() for side in sides]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        table = continuous_bias(network, places, self.native_grid)
        whole = torch.tensor([sides], device=grid.device).expand_as(grid)
        return sample_bias_table(table.movedim(-1, 0), differences, whole)


def num_differences(grid: tuple[int, ...]) -> int:
    """Returns the number of differences of positions in a grid."""
    return math.prod(2 * side - 1 for side in grid)


def resample_differences(
    table: torch.Tensor, grid: tuple[int, ...], wanted: tuple[int, ...], mode: str
) -> torch.Tensor:
    """A table `(B, differences, heads)` of a grid's differences as that of another grid's."""
    table = table.transpose(1, 2).unflatten(2, tuple(2 * side - 1 for side in grid))
    table = nn.functional.interpolate(table, tuple(2 * side - 1 for side in wanted), mode=mode)
    return table.flatten(2).transpose(1, 2)


def bias_network(num_heads: int, num_axes: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_axes, 512), nn.ReLU(), nn.Linear(512, num_heads, bias=False))


def continuous_bias(
    network: nn.Module, differences: torch.Tensor, native_grid: tuple[int, ...]
) -> torch.Tensor:
    """Bias `(..., heads)` of differences `(..., A)`, see `RelativeBiasContinuous`."""
    native = torch.tensor([max(side - 1, 1) for side in native_grid], device=differences.device)
    scaled = differences.sign() * torch.log2(1 + 8 * differences.abs() / native) / 3
    # In half precision, distant differences would coincide, and 16 times the answer be coarse.
    with torch.autocast(scaled.device.type, enabled=False):
        return 16 * network(scaled.to(network[0].weight.dtype)).float().sigmoid()


def sample_bias_table(table: torch.Tensor, differences: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """A table of differences in its native grid, read at those of other grids, `(B, heads, N, N)`.

    Equal to `interpolate(table, (2 * rows - 1, 2 * columns - 1), mode="bilinear")`, or "trilinear", read
    there.

    Args:
        table: `(heads, 2R - 1, 2S - 1)`, or `(heads, 2T' - 1, 2R - 1, 2S - 1)`, the difference 0 in the
            middle.
        differences: `(B, N, N, A)`.
        grid: `(B, A)` rows and columns of the grids.
    """
    extent = torch.tensor(table.shape[1:], device=grid.device)
    extent_of_grid = 2 * grid[:, None, None] - 1  # (B, 1, 1, A)
    place = (differences + grid[:, None, None] - 0.5) * (extent / extent_of_grid)  # from 0 to extent
    place = (2 * place / extent - 1).flip(-1).to(table.dtype)
    if table.ndim == 4:
        place = place.unsqueeze(1)
    read = nn.functional.grid_sample(
        table.expand(differences.shape[0], *table.shape),
        place,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return read.squeeze(2) if table.ndim == 4 else read


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
    """Sinusoid `(..., dim)` at `coordinates` `(..., 3)`: a third each for time, row and column, as
    `sinusoid_2d`.

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
    """Checks that each of three axes gets a sine and a cosine; channels beyond a multiple of six have no
    position.

    Raises:
        ValueError: if `hidden_size` is below 6.
    """
    if config.hidden_size < 6:
        raise ValueError(
            f"position_encoding={type_of(config.position_encoding)!r} needs a hidden_size of at least 6, got "
            f"{config.hidden_size}."
        )


class NoPosition(PositionEncoding):
    """No positions, so that patches are an unordered set."""


class Sinusoidal(PositionEncoding):
    """A fixed sinusoid over the raster index of patches, added to embeddings.

    "Attention Is All You Need"; CLS is position 0, patches follow. A position between rows (of a thumbnail)
    shares its index with a position in a row: `sinusoidal_2d` distinguishes them.
    """

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_width(config, 2)

    def add(self, tokens: PatchTokens) -> PatchTokens:
        index = flatten_coordinates(tokens.coordinates, tokens.grid)
        table = sinusoid_1d(index + 1, tokens.features.shape[-1])
        return tokens.with_features(tokens.features + table.to(tokens.features.dtype))

    def add_to_cls(self, cls_token: torch.Tensor) -> torch.Tensor:
        position = torch.zeros(1, 1, device=cls_token.device)
        return cls_token + sinusoid_1d(position, cls_token.shape[-1]).to(cls_token.dtype)


class Sinusoidal2D(PositionEncoding):
    """Fixed sinusoids of row and column, half of the channels each (MAE, MoCo v3).

    Nothing is added to CLS.
    """

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_width(config, 4)

    def add(self, tokens: PatchTokens) -> PatchTokens:
        table = sinusoid_2d(tokens.coordinates, tokens.features.shape[-1])
        return tokens.with_features(tokens.features + table.to(tokens.features.dtype))


class Sinusoidal3D(PositionEncoding):
    """Fixed sinusoids of time (or depth), row and column, a third of the channels each.

    Nothing is added to CLS.
    """

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
    """Options of `"learned"`: resizing of the table.

    Args:
        interpolation: "bicubic" or "bilinear" (SigLIP 2).
        antialias: whether it is shrunk with antialiasing, as DINOv2 with registers and SigLIP 2.
    """

    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = False


class Learned(PositionEncoding):
    """A learned vector for each patch of the native grid, interpolated elsewhere (ViT).

    At the full grid of another resolution, bicubic by default, this equals transformers'
    `interpolate_pos_encoding`: that of ViT and DINOv2 by default, that of DINOv2 with registers with
    `antialias`, and that of SigLIP 2 with `antialias` and "bilinear" interpolation. For videos and volumes
    the same kernel works along the third axis.
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
    """A learned table that is initialized with fixed sinusoids of row and column.

    Of videos also of time; zeros for CLS.
    """

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
    """A learned table, and queries and keys rotated by row and column (EVA-02).

    `"learned"` and `"rotary"` with the options of both; Fang et al., 2023.
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
    """A small network over learned Fourier features of the coordinates.

    Coordinates are in patches of the native grid.

    "Learnable Fourier Features for Multi-Dimensional Spatial Positional Encoding" (Li et al., 2021), section
    3: W2 gelu(W1 [cos(W p), sin(W p)] / sqrt(F) + b1) + b2, with W drawn at first from a Gaussian of
    deviation 1 / `scale`. Nothing for CLS.
    """

    Options = FourierOptions
    holds_for_native_grid = True

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
