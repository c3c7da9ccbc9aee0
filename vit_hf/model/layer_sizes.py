"""Sizes of blocks, which may differ from one to the next: heads, channels of a head, width of the feed-forward network."""


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
