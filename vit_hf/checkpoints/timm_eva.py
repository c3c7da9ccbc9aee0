"""Converts timm's `Eva`: EVA, EVA-02 and its CLIP variants, DINOv3, and RoPE-ViT with fixed frequencies."""

from typing import Any

import torch
from torch import nn

from ..model.options import Part
from .families import Weights
from .timm_parts import (
    TABLE,
    check_blocks,
    feed_forward,
    refuse,
    shared_options,
    shared_weights,
    unsupported_options,
)


MLPS = {"Mlp": "mlp", "GluMlp": "gated", "SwiGLU": "gated"}
ROTATIONS = ("RotaryEmbeddingCat", "RotaryEmbeddingDinoV3")


def read_config(model: nn.Module) -> dict[str, Any]:
    """Reads fields of `AdaptiveViTConfig`.

    Raises:
        CannotConvert: naming every option that an AdaptiveViT does not have.
    """
    check_blocks(model, "EvaBlock")
    block = model.blocks[0]
    mlp, attention = block.mlp, block.attn
    kind = type(mlp).__name__
    refuse(
        "Eva",
        {
            f"feed-forward networks of type {kind}": kind not in MLPS,
            "norms of queries and keys": not isinstance(attention.q_norm, nn.Identity),
            "gated attention": getattr(attention, "gate", None) is not None,
            "heads that share keys": any(
                getattr(part.attn, "num_kv_heads", part.attn.num_heads) != part.attn.num_heads
                for part in model.blocks
            ),
            "heads of another width": attention.head_dim * attention.num_heads != model.embed_dim,
            "a layer scale of attention alone": block.gamma_1 is not None and block.gamma_2 is None,
            "attention pooling over prefix tokens": model.global_pool == "map"
            and model.num_prefix_tokens > 0,
            **unsupported_options(model),
            **unsupported_rotation(model),
        },
    )
    bias = biases(attention)
    return shared_options(model) | {
        "intermediate_size": mlp.fc2.in_features,
        "feed_forward": feed_forward(model, MLPS[kind]),
        "qkv_bias": bias["q_proj"] is not None,
        "key_bias": bias["k_proj"] is not None,
        "layerscale_value": None if block.gamma_1 is None else 1.0,
        "position_encoding": read_positions(model),
    }


def unsupported_rotation(model: nn.Module) -> dict[str, bool]:
    rope = model.rope
    if rope is None:
        return {}
    kind, offset = type(rope).__name__, getattr(rope, "grid_offset", 0)
    normalized = getattr(rope, "normalize_coords", "separate")
    return {
        f"rotation of type {kind}": kind not in ROTATIONS,
        f"rotation in a grid with an offset of {offset}": offset != 0,
        f"rotation in coordinates normalized by {normalized}": normalized != "separate",
        "rotation by frequencies of pixels": getattr(rope, "in_pixels", False),
        "rotation by periods between two bounds": getattr(rope, "min_period", None) is not None,
    }


def read_positions(model: nn.Module) -> Part:
    """Reads our `position_encoding`."""
    rope, table = model.rope, model.pos_embed is not None
    if rope is None:
        return {"type": "learned", **TABLE} if table else "none"
    options = {
        "type": "learned_rotary" if table else "rotary",
        "base": float(rope.temperature),
        "shift": rope.shift_coords,
        "jitter": rope.jitter_coords,
        "rescale": rope.rescale_coords,
        **(TABLE if table else {}),
    }
    if type(rope).__name__ == "RotaryEmbeddingDinoV3":
        return options | {"coordinates": "normalized"}
    if rope.ref_feat_shape is None:
        return options | {"coordinates": "patches"}
    return options | {"coordinates": "native", "reference_grid": list(rope.ref_feat_shape)}


def biases(attention: nn.Module) -> dict[str, torch.Tensor | None]:
    """Biases of queries, keys and values; None where absent."""
    names = ("q_proj", "k_proj", "v_proj")
    if attention.qkv is None:
        return {name: getattr(attention, name).bias for name in names}
    if attention.qkv.bias is not None:
        return dict(zip(names, attention.qkv.bias.chunk(3), strict=True))
    return dict(
        zip(
            names, (getattr(attention, "q_bias", None), None, getattr(attention, "v_bias", None)), strict=True
        )
    )


def matrices(attention: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of queries, keys and values."""
    names = ("q_proj", "k_proj", "v_proj")
    if attention.qkv is None:
        return {name: getattr(attention, name).weight for name in names}
    return dict(zip(names, attention.qkv.weight.chunk(3), strict=True))


def channel_order(model: nn.Module) -> torch.Tensor | None:
    """Permutation of a head's channels after which our rotation pairs the channels that timm's
    pairs, or None.

    Ours pairs channel i with i + d / 2, the first half of i by rows. Theirs may pair neighbors, or have
    columns first.
    """
    rope, head_dim = model.rope, model.blocks[0].attn.head_dim
    if rope is None:
        return None
    pairs = torch.arange(head_dim // 2)
    if rope.grid_indexing == "xy":
        pairs = pairs.roll(head_dim // 4)
    if rope.rotate_half:
        return torch.cat((pairs, pairs + head_dim // 2))
    return torch.cat((2 * pairs, 2 * pairs + 1))


def to_ours(model: nn.Module, options: dict[str, Any]) -> Weights:
    """Returns the weights with our names and shapes."""
    theirs = {name: value.detach() for name, value in model.state_dict().items()}
    ours, order = shared_weights(model, theirs), channel_order(model)
    for index, block in enumerate(model.blocks):
        ours |= {f"vit.layers.{index}.{name}": value for name, value in block_weights(block, order).items()}
    return ours


def block_weights(block: nn.Module, order: torch.Tensor | None) -> Weights:
    """Returns a block's weights with our names."""
    attention, mlp = block.attn, block.mlp
    parts = {
        "layernorm_before": block.norm1,
        "layernorm_after": block.norm2,
        "attention.norm": attention.norm,
        "attention.o_proj": attention.proj,
        "mlp.norm": mlp.norm,
    }
    if hasattr(mlp, "fc1_g"):
        parts |= {"mlp.gate_proj": mlp.fc1_g, "mlp.up_proj": mlp.fc1_x, "mlp.down_proj": mlp.fc2}
    elif MLPS[type(mlp).__name__] == "mlp":
        parts |= {"mlp.fc1": mlp.fc1, "mlp.fc2": mlp.fc2}
    else:
        parts["mlp.down_proj"] = mlp.fc2
    ours = {
        f"{name}.{kind}": value for name, part in parts.items() for kind, value in part.state_dict().items()
    }
    if "mlp.down_proj.weight" in ours and not hasattr(mlp, "fc1_g"):
        for kind, value in mlp.fc1.state_dict().items():
            first, second = value.chunk(2)
            gate, up = (second, first) if mlp.gate_last else (first, second)
            ours |= {f"mlp.gate_proj.{kind}": gate, f"mlp.up_proj.{kind}": up}
    for kind, values in (("weight", matrices(attention)), ("bias", biases(attention))):
        for name, value in values.items():
            if value is None:
                continue
            if order is not None and name != "v_proj":
                value = value.unflatten(0, (attention.num_heads, -1))[:, order].flatten(0, 1)
            ours[f"attention.{name}.{kind}"] = value.detach()
    for index, scale in enumerate((block.gamma_1, block.gamma_2), start=1):
        if scale is not None:
            ours[f"layer_scale{index}.lambda1"] = scale.detach()
    return ours
