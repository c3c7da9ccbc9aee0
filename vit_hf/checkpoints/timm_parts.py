"""Shared parts of timm's classes: embeddings, heads, names, and the `ResNetV2` of hybrids as a BiT."""

from typing import Any

import torch
from torch import nn
from transformers import BitConfig

from ..model.configuration_adaptive_vit import bit_stride
from ..model.options import Part
from .families import CannotConvert, Weights


# Parts of the CNN: theirs, ours.
BACKBONE = (
    ("stem.conv.", "bit.embedder.convolution."),
    ("stem.norm.", "bit.embedder.norm."),
    ("stages.", "bit.encoder.stages."),
    (".blocks.", ".layers."),
)


def is_hybrid(model: nn.Module) -> bool:
    return type(model.patch_embed).__name__ == "HybridEmbed"


def hybrid_fields(embed: nn.Module) -> dict[str, Any]:
    """Reads fields of `AdaptiveViTConfig` for timm's `HybridEmbed`.

    Raises:
        CannotConvert: for a CNN that a BiT of transformers cannot be, or patches of several cells.
    """
    backbone, name = embed.backbone, type(embed.backbone).__name__
    if name != "ResNetV2":
        raise CannotConvert(
            f"Its CNN is of type {name}; of timm's hybrids those with a ResNetV2 can be converted."
        )
    blocks = [block for stage in backbone.stages for block in stage.blocks]
    convolutions = [part for part in backbone.modules() if isinstance(part, nn.Conv2d)]
    norms = [part for part in backbone.modules() if isinstance(part, nn.GroupNorm)]
    downsamples = {type(stage.blocks[0].downsample).__name__ for stage in backbone.stages}
    activations = {type(part.act).__name__ for part in norms} | {
        type(getattr(block, "act3", None)).__name__ for block in blocks
    }
    unknown = {
        f"patches of {embed.patch_size} cells": tuple(embed.patch_size) != (1, 1),
        "no projection": not isinstance(embed.proj, nn.Conv2d),
        f"a stem of {[*dict(backbone.stem.named_children())]}": [*dict(backbone.stem.named_children())]
        != ["conv", "norm", "pool"],
        "pooling in the stem that is not padded to the same size": type(backbone.stem.pool).__name__
        != "MaxPool2dSame",
        "blocks that normalize first (preact=True)": {type(block).__name__ for block in blocks}
        != {"Bottleneck"},
        "convolutions other than StdConv2dSame with eps=1e-8, without groups and dilation": any(
            type(part).__name__ != "StdConv2dSame"
            or part.eps != 1e-8
            or part.groups != 1
            or part.dilation != (1, 1)
            for part in convolutions
        ),
        "norms other than GroupNorm with eps=1e-5": any(part.eps != 1e-5 for part in norms)
        or len({part.num_groups for part in norms}) != 1,
        f"activations {sorted(activations)}": not activations <= {"ReLU", "Identity"},
        f"shortcuts of type {sorted(downsamples)}": downsamples != {"DownsampleConv"},
        "a head": not isinstance(backbone.head.fc, nn.Identity),
    }
    found = [what for what, is_there in unknown.items() if is_there]
    if found:
        raise CannotConvert(f"Its CNN has {', '.join(found)}, which a BiT of transformers has not.")
    config = BitConfig(
        num_channels=backbone.stem.conv.in_channels,
        embedding_size=backbone.stem.conv.out_channels,
        hidden_sizes=[stage.blocks[-1].conv3.out_channels for stage in backbone.stages],
        depths=[len(stage.blocks) for stage in backbone.stages],
        num_groups=norms[0].num_groups,
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
        out_features=[f"stage{len(backbone.stages)}"],
    )
    stride = bit_stride(config)
    return {
        "backbone_config": config,
        "patch_size": stride,
        "encoder_stride": stride,
        "num_channels": config.num_channels,
    }


def backbone_name(name: str) -> str:
    """Returns our name of a CNN weight, without prefixes."""
    for theirs, ours in BACKBONE:
        name = name.replace(theirs, ours)
    return name


POOLINGS = {"token": "cls", "avg": "mean", "map": "map"}
ACTIVATIONS = {
    "GELU": "gelu",
    "GELUTanh": "gelu_pytorch_tanh",
    "QuickGELU": "quick_gelu",
    "SiLU": "silu",
    "ReLU": "relu",
}
NORMS = {"norm_pre": "vit.pre_layernorm", "norm": "vit.layernorm", "fc_norm": "vit.layernorm"}


# Options of a learned table of positions, which timm resizes with antialiasing.
TABLE = {"antialias": True}


def refuse(name: str, unknown: dict[str, bool], ours: str = "AdaptiveViT") -> None:
    """Raises: CannotConvert with every reason that holds."""
    found = [what for what, is_there in unknown.items() if is_there]
    if found:
        raise CannotConvert(f"This {name} has {', '.join(found)}, which {ours} has not.")


def check_blocks(model: nn.Module, kind: str) -> None:
    """Raises: CannotConvert unless all blocks are of one kind."""
    kinds = {type(part).__name__ for part in model.blocks}
    if kinds != {kind}:
        raise CannotConvert(
            f"This {type(model).__name__} has blocks of type {', '.join(sorted(kinds))}, and only {kind} can "
            "be converted."
        )


def inner_norms(block: nn.Module) -> dict[str, nn.Module]:
    """Norms inside the branches of a block, by the name of the branch."""
    norms = {"mlp": getattr(block.mlp, "norm", None), "attention": getattr(block.attn, "norm", None)}
    return {name: norm for name, norm in norms.items() if not isinstance(norm, nn.Identity | type(None))}


def unsupported_options(model: nn.Module) -> dict[str, bool]:
    """Unsupported features of timm's blocks, and if this model uses each."""
    block = model.blocks[0]
    activation, norm = type(block.mlp.act).__name__, block.norm1
    return {
        "inner norms that differ from those before": any(
            type(inner) is not type(norm) or inner.eps != norm.eps for inner in inner_norms(block).values()
        ),
        f"the activation {activation}": activation not in ACTIVATIONS,
        f"norms of type {type(norm).__name__}": not isinstance(norm, nn.LayerNorm),
        f"global_pool={model.global_pool!r}": model.global_pool not in POOLINGS,
        "a final norm of all tokens and another of what is pooled": not any(
            isinstance(final, nn.Identity) for final in (model.norm, model.fc_norm)
        ),
        "padding to whole patches (for images of whole patches set "
        "model.patch_embed.dynamic_img_pad = False)": (getattr(model.patch_embed, "dynamic_img_pad", False)),
        "pooling that includes prefix tokens": getattr(model, "pool_include_prefix", False),
        "a norm after the patch embedding": not isinstance(
            getattr(model.patch_embed, "norm", nn.Identity()), nn.Identity
        ),
        **unsupported_pooling(model),
    }


def unsupported_pooling(model: nn.Module) -> dict[str, bool]:
    """Unsupported features of attention pooling, and if this model uses each."""
    pool, block = model.attn_pool, model.blocks[0]
    if model.global_pool != "map":
        return {}
    return {
        "attention pooling with other heads than the blocks": pool.num_heads != block.attn.num_heads,
        "attention pooling with positions": pool.pos_embed is not None,
        "attention pooling with several queries": pool.latent_len != 1,
        "attention pooling with norms of queries and keys": not isinstance(pool.q_norm, nn.Identity),
        "attention pooling without projections, biases or a feed-forward network": (
            not isinstance(pool.q, nn.Linear)
            or pool.q.bias is None
            or not isinstance(pool.proj, nn.Linear)
            or pool.mlp is None
        ),
        "attention pooling with another feed-forward network than the blocks": (
            type(block.mlp).__name__ != "Mlp"
            or pool.mlp is None
            or pool.mlp.fc1.out_features != block.mlp.fc1.out_features
            or type(pool.mlp.act) is not type(block.mlp.act)
        ),
        "attention pooling with another norm than the blocks": (
            not isinstance(pool.norm, nn.LayerNorm) or pool.norm.eps != block.norm1.eps
        ),
    }


def shared_options(model: nn.Module) -> dict[str, Any]:
    """Reads the fields of `AdaptiveViTConfig` that both classes express alike."""
    patch_size, image_size = model.patch_embed.patch_size, model.patch_embed.img_size
    block = model.blocks[0]
    distilled = hasattr(model, "dist_token")
    registers = int(distilled) + (0 if model.reg_token is None else model.reg_token.shape[1])
    if not isinstance(model.norm, nn.Identity):
        final_norm = "tokens"
    else:
        final_norm = "none" if isinstance(model.fc_norm, nn.Identity) else "pooled"
    return {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": ACTIVATIONS[type(block.mlp.act).__name__],
        "layer_norm_eps": block.norm1.eps,
        "image_size": image_size[0] if image_size[0] == image_size[1] else list(image_size),
        "patch_size": patch_size[0] if patch_size[0] == patch_size[1] else list(patch_size),
        "encoder_stride": patch_size[0],
        "num_channels": model.patch_embed.proj.in_channels,
        **(read_labels(model) or {"num_labels": model.num_classes}),
        "attention": {
            "norm": "attention" in inner_norms(block),
            "projection_bias": block.attn.proj.bias is not None,
        },
        "patch_embedding": {"type": "linear", "bias": model.patch_embed.proj.bias is not None},
        "pre_layernorm": not isinstance(model.norm_pre, nn.Identity),
        "final_norm": final_norm,
        "use_cls_token": model.cls_token is not None,
        "num_register_tokens": registers,
        "pooling": "cls+register" if distilled else POOLINGS[model.global_pool],
        "position_encoding": {"type": "learned", **TABLE},
    }


def feed_forward(model: nn.Module, kind: str) -> Part:
    """Reads our `feed_forward` of the given type."""
    block = model.blocks[0]
    return {"type": kind, "bias": block.mlp.fc2.bias is not None, "norm": "mlp" in inner_norms(block)}


def read_labels(model: nn.Module) -> dict[str, Any]:
    """Reads class names from the model's `pretrained_cfg`, if it has them."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    if not names or len(names) != model.num_classes:
        return {}
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


def shared_weights(model: nn.Module, theirs: Weights) -> Weights:
    """Returns all weights but the blocks', with our names and shapes."""
    ours = embedding_weights(model, theirs)
    for name, value in theirs.items():
        module, _, kind = name.rpartition(".")
        if name.startswith("patch_embed.proj."):
            ours[f"vit.embeddings.patch_embeddings.projection.{kind}"] = value
        elif name.startswith("patch_embed.backbone."):
            part = backbone_name(name.removeprefix("patch_embed.backbone."))
            ours[f"vit.embeddings.patch_embeddings.backbone.{part}"] = value
        elif module in NORMS:
            ours[f"{NORMS[module]}.{kind}"] = value
    if "attn_pool.latent" in theirs:
        ours |= attention_pooling(theirs)
    if model.num_classes and "dist_token" in theirs:
        heads = ("head", "head_dist")
        ours["classifier.weight"] = torch.cat([theirs[f"{head}.weight"] for head in heads], dim=1) / 2
        ours["classifier.bias"] = sum(head_bias(theirs, head) for head in heads) / 2
    elif model.num_classes:
        ours |= {"classifier.weight": theirs["head.weight"], "classifier.bias": head_bias(theirs, "head")}
    return ours


def head_bias(theirs: Weights, head: str) -> torch.Tensor:
    """Returns the head's bias; zeros if it has none, because ours always has one."""
    weight = theirs[f"{head}.weight"]
    return theirs.get(f"{head}.bias", weight.new_zeros(len(weight)))


def embedding_weights(model: nn.Module, theirs: Weights) -> Weights:
    """Returns CLS token, registers and the table of positions, which may have entries for these tokens."""
    num_cls = int(model.cls_token is not None)
    registers = [theirs[name] for name in ("dist_token", "reg_token") if name in theirs]
    registers = torch.cat(registers, dim=1) if registers else None
    table, ours = theirs.get("pos_embed"), {}
    if table is not None:
        if getattr(model, "no_embed_class", False):  # the table has places for patches alone
            table = torch.cat((table.new_zeros(1, num_cls, table.shape[2]), table), dim=1)
        elif registers is not None:
            # Add the table's entries for registers to the registers.
            rest = num_cls + registers.shape[1]
            registers = registers + table[:, num_cls:rest]
            table = torch.cat((table[:, :num_cls], table[:, rest:]), dim=1)
        ours["vit.embeddings.position_encoding.position_embeddings"] = table
    if num_cls:
        ours["vit.embeddings.cls_token"] = theirs["cls_token"]
    if registers is not None:
        ours["vit.embeddings.register_tokens"] = registers
    return ours


def attention_pooling(theirs: Weights) -> Weights:
    """Returns its weights with our names: those of torch's `MultiheadAttention`, and SigLIP's others."""
    ours = {"vit.pooler.probe": theirs["attn_pool.latent"]}
    for kind in ("weight", "bias"):
        parts = [theirs[f"attn_pool.{part}.{kind}"] for part in ("q", "kv")]
        ours[f"vit.pooler.attention.in_proj_{kind}"] = torch.cat(parts)
        ours[f"vit.pooler.attention.out_proj.{kind}"] = theirs[f"attn_pool.proj.{kind}"]
        ours[f"vit.pooler.layernorm.{kind}"] = theirs[f"attn_pool.norm.{kind}"]
        for layer in ("fc1", "fc2"):
            ours[f"vit.pooler.mlp.{layer}.{kind}"] = theirs[f"attn_pool.mlp.{layer}.{kind}"]
    return ours
