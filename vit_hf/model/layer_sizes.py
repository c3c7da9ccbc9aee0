"""Sizes of blocks, where they differ from one to the next. Imports no PyTorch."""

from dataclasses import dataclass

from huggingface_hub.dataclasses import strict

from .options import Options, read_options


@strict
@dataclass(kw_only=True)
class LayerSizes(Options):
    """Sizes of each block, where blocks differ: lists of as many numbers as there are blocks; None where they are equal.

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
            f"hidden_size={config.hidden_size} must be a multiple of num_attention_heads={config.num_attention_heads}, "
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
            f"layer_sizes: num_attention_heads={list(heads)} must not be above num_attention_heads={config.num_attention_heads}, "
            "which is how many heads a position encoding counts."
        )
