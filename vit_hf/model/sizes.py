"""Sizes of images, patches and blocks that follow from a configuration.

Shape legend: `patches.py`; T frames, t of them in a patch.
"""


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
    """Patches along each axis of these, (R, S) or (T / t, R, S)."""
    return tuple(side // patch for side, patch in zip(native_sides(config), patch_sides(config), strict=True))


def scout_sides(config) -> tuple[int, ...]:
    """Sides of the thumbnail that a probe sees."""
    frames = getattr(config, "scout_num_frames", None) or getattr(config, "num_frames", None)
    return _with_frames(config, frames, config.scout_image_size or config.image_size)


def scorer_sides(config) -> tuple[int, ...]:
    """Sides of the thumbnail that the network of `"policy"` and `"perturbed"` sees, of whole tubelets."""
    frames = native_grid(config)[0] * config.tubelet_size if has_frames(config) else None
    return _with_frames(config, frames, config.scorer_image_size or config.image_size)


def head_dim_of(config) -> int:
    """Channels of every head."""
    if config.head_dim is not None:
        return config.head_dim
    return config.hidden_size // config.num_attention_heads


def heads_of(config, layer_index: int) -> int:
    """Heads of a block, which are the first of those that a position encoding counts."""
    heads = config.layer_num_attention_heads
    return config.num_attention_heads if heads is None else heads[layer_index]


def intermediate_size_of(config, layer_index: int) -> int:
    """Width of a block's feed-forward network."""
    sizes = config.layer_intermediate_sizes
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
    for name in ("layer_num_attention_heads", "layer_intermediate_sizes"):
        sizes = getattr(config, name)
        if sizes is not None and (len(sizes) != config.num_hidden_layers or min(sizes) < 1):
            raise ValueError(
                f"{name}={list(sizes)} must have a number of at least 1 for each of "
                f"num_hidden_layers={config.num_hidden_layers} blocks, or be None."
            )
    heads = config.layer_num_attention_heads
    if heads is not None and max(heads) > config.num_attention_heads:
        raise ValueError(
            f"layer_num_attention_heads={list(heads)} must not be above num_attention_heads={config.num_attention_heads}, "
            "which is how many heads a position encoding counts."
        )
