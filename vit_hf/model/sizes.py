"""Sizes of images, patches and blocks that follow from a configuration.

Shape legend: `patches.py`; T frames, t of them in a patch.
"""

from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict

from .options import Options, read_options


def to_pair(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a size that a configuration may give as one number."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def has_frames(config) -> bool:
    """Tells whether a configuration is for videos or volumes."""
    return getattr(config, "num_frames", None) is not None  # Swin has no such field


def _with_frames(config, number: int | None, size: int | list[int] | tuple[int, int]) -> tuple[int, ...]:
    return (number, *to_pair(size)) if has_frames(config) else to_pair(size)


def patch_sides(config) -> tuple[int, ...]:
    """(P, P) pixels of a patch; (t, P, P) with frames."""
    return _with_frames(config, getattr(config, "tubelet_size", None), config.patch_size)


def native_sides(config) -> tuple[int, ...]:
    """(H, W) of the images that a configuration names; (T, H, W) with frames."""
    return _with_frames(config, getattr(config, "num_frames", None), config.image_size)


def native_grid(config) -> tuple[int, ...]:
    """Patches along each axis of the native image, (R, S); of a video (T / t, R, S)."""
    return tuple(side // patch for side, patch in zip(native_sides(config), patch_sides(config), strict=True))


def thumbnail_sides(config, size: int | list[int] | tuple[int, ...] | bool | None = None) -> tuple[int, ...]:
    """Sides of a thumbnail of an image or video.

    Args:
        config: of the model.
        size: pixels of a side, (height, width), or of a video (frames, height, width); None or True for the
            native ones.
    """
    if size is None or size is True:
        return native_sides(config)
    if not isinstance(size, int) and len(size) == 3:
        return tuple(int(side) for side in size)
    return _with_frames(config, getattr(config, "num_frames", None), size)


def check_thumbnail(config, name: str, size: Any, least: tuple[int, ...]) -> None:
    """Checks the size of a thumbnail.

    Args:
        config: of the model.
        name: of the option, for errors.
        size: value of the option.
        least: sides that the thumbnail must have at least.

    Raises:
        ValueError: if it has the wrong number of sides, or is too small.
    """
    legal = "a number of pixels or a pair (height, width)"
    if has_frames(config):
        legal += ", or (frames, height, width)"
    if isinstance(size, list | tuple) and len(size) != 2 and not (has_frames(config) and len(size) == 3):
        raise ValueError(f"{name}={list(size)} must be {legal}.")
    sides = thumbnail_sides(config, size)
    if min(sides) < 1:
        raise ValueError(f"{name}={size} must be at least one pixel a side.")
    if any(side < needed for side, needed in zip(sides, least, strict=True)):
        raise ValueError(
            f"{name}={'image_size' if size is None else size} gives a thumbnail of {list(sides)}, "
            "and it must have at "
            f"least {list(least)}: {legal}."
        )


@strict
@dataclass(kw_only=True)
class LayerSizes(Options):
    """Sizes of each block, where blocks differ: lists of as many numbers as there are blocks; None where they
    are equal.

    Args:
        num_attention_heads: heads, of which a block with fewer than the configuration's has the first of
            those that the position encoding counts.
        intermediate_size: width of the feed-forward network.
    """

    num_attention_heads: list[int] | tuple[int, ...] | None = None
    intermediate_size: list[int] | tuple[int, ...] | None = None


def read_layer_sizes(config) -> LayerSizes:
    """Sizes of `config.layer_sizes`."""
    return read_options(LayerSizes, "layer_sizes", config.layer_sizes)


def head_dim_of(config) -> int:
    """Channels of every head."""
    if config.head_dim is not None:
        return config.head_dim
    return config.hidden_size // config.num_attention_heads


def heads_of(config, layer_index: int) -> int:
    """Heads of a block, which are the first of those that a position encoding counts."""
    heads = read_layer_sizes(config).num_attention_heads
    return config.num_attention_heads if heads is None else heads[layer_index]


def intermediate_size_of(config, layer_index: int) -> int:
    """Width of a block's feed-forward network."""
    sizes = read_layer_sizes(config).intermediate_size
    return config.intermediate_size if sizes is None else sizes[layer_index]


def check_layer_sizes(config) -> None:
    """Raises: ValueError for sizes that do not fit each other, naming them."""
    if config.head_dim is not None and config.head_dim < 1:
        raise ValueError(f"head_dim={config.head_dim} must be at least 1, or None.")
    if config.head_dim is None and config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} must be a multiple of "
            f"num_attention_heads={config.num_attention_heads}, "
            "unless head_dim says how many channels a head has."
        )
    if config.pooling == "map" and config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"pooling='map' has heads of its own: hidden_size={config.hidden_size} must be a multiple of "
            f"num_attention_heads={config.num_attention_heads}."
        )
    for name in ("num_attention_heads", "intermediate_size"):
        sizes = getattr(read_layer_sizes(config), name)
        if sizes is not None and (len(sizes) != config.num_hidden_layers or min(sizes) < 1):
            raise ValueError(
                f"layer_sizes: {name}={list(sizes)} must have a number of at least 1 for each of "
                f"num_hidden_layers={config.num_hidden_layers} blocks, or be None."
            )
    heads = read_layer_sizes(config).num_attention_heads
    if heads is not None and max(heads) > config.num_attention_heads:
        raise ValueError(
            f"layer_sizes: num_attention_heads={list(heads)} must not be above "
            f"num_attention_heads={config.num_attention_heads}, "
            "which is how many heads a position encoding counts."
        )
