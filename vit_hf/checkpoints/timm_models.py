"""timm's `VisionTransformer` (and `VisionTransformerDistilled`), given as a module."""

from typing import Any

import torch
from torch import nn

from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.image_processing_adaptive_vit import AdaptiveViTImageProcessor
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification
from .families import CannotConvert, Weights
from .timm_hybrid import backbone_name, hybrid_fields, is_hybrid


POOLINGS = {"token": "cls", "avg": "mean"}
ACTIVATIONS = {
    "GELU": "gelu",
    "GELUTanh": "gelu_pytorch_tanh",
    "QuickGELU": "quick_gelu",
    "SiLU": "silu",
    "ReLU": "relu",
}
INTERPOLATIONS = {"nearest": 0, "bilinear": 2, "bicubic": 3, "lanczos": 1}


def is_timm(model: nn.Module) -> bool:
    return type(model).__module__.startswith("timm.")


def convert_timm(
    model: nn.Module, **fields: Any
) -> tuple[AdaptiveViTForImageClassification, AdaptiveViTImageProcessor]:
    """A model of timm as an AdaptiveViT with the same outputs, and an image processor for its `pretrained_cfg`.

    Other sizes than the native are interpolated as timm does with `dynamic_img_size=True`. A model without classes has
    the pooled features as logits.

    Raises:
        CannotConvert: for another class, or an option that an AdaptiveViT does not have.
    """
    options = read_config(model) | fields
    weights = to_ours(model, options)
    result = AdaptiveViTForImageClassification(AdaptiveViTConfig(**options))
    report = result.load_state_dict(weights, strict=False)
    added = ("vit.selector.", "vit.reducers.", "vit.embeddings.scale_embedding")
    missing = [name for name in report.missing_keys if not name.startswith(added)]
    if missing or report.unexpected_keys:
        raise CannotConvert(
            f"Weights without a place: {report.unexpected_keys[:5]}; places without one: {missing[:5]}."
        )
    dtype = next(model.parameters()).dtype
    return result.to(dtype).eval(), read_processor(model, options)


def read_config(model: nn.Module) -> dict[str, Any]:
    name = type(model).__name__
    if name not in ("VisionTransformer", "VisionTransformerDistilled"):
        raise CannotConvert(
            f"Of timm, VisionTransformer and VisionTransformerDistilled can be converted, not {name}."
        )
    block = model.blocks[0]
    kinds = {type(part).__name__ for part in model.blocks}
    if kinds != {"Block"}:
        raise CannotConvert(
            f"This {name} has blocks of type {', '.join(sorted(kinds))}, and only Block can be converted."
        )
    mlp, attention = type(block.mlp).__name__, block.attn
    activation = type(block.mlp.act).__name__
    unknown = {
        f"feed-forward networks of type {mlp}": mlp not in ("Mlp", "GluMlp", "SwiGLUPacked"),
        f"the activation {activation}": activation not in ACTIVATIONS,
        "norms of queries and keys": not isinstance(attention.q_norm, nn.Identity),
        "norms inside attention or the feed-forward network": not isinstance(
            getattr(attention, "norm", nn.Identity()), nn.Identity
        )
        or not isinstance(getattr(block.mlp, "norm", nn.Identity()), nn.Identity),
        f"norms of type {type(block.norm1).__name__}": not isinstance(block.norm1, nn.LayerNorm),
        f"global_pool={model.global_pool!r}": model.global_pool not in POOLINGS,
        "pooling that includes prefix tokens": getattr(model, "pool_include_prefix", False),
        "no position embedding": model.pos_embed is None,
        "a norm after the patch embedding": not isinstance(
            getattr(model.patch_embed, "norm", nn.Identity()), nn.Identity
        ),
    }
    found = [what for what, is_there in unknown.items() if is_there]
    if found:
        raise CannotConvert(f"This {name} has {', '.join(found)}, which AdaptiveViT has not.")
    patch_size, image_size = model.patch_embed.patch_size, model.patch_embed.img_size
    gated = mlp != "Mlp"
    distilled = hasattr(model, "dist_token")
    registers = int(distilled) + (0 if model.reg_token is None else model.reg_token.shape[1])
    if not isinstance(model.norm, nn.Identity):
        final_norm = "tokens"
    else:
        final_norm = "none" if isinstance(model.fc_norm, nn.Identity) else "pooled"
    return {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": attention.num_heads,
        "intermediate_size": block.mlp.fc1.out_features // (2 if gated else 1),
        "mlp_type": "gated" if gated else "mlp",
        "hidden_act": ACTIVATIONS[activation],
        "layer_norm_eps": block.norm1.eps,
        "image_size": image_size[0] if image_size[0] == image_size[1] else list(image_size),
        "patch_size": patch_size[0] if patch_size[0] == patch_size[1] else list(patch_size),
        "encoder_stride": patch_size[0],
        "num_channels": model.patch_embed.proj.in_channels,
        "num_labels": model.num_classes,
        "qkv_bias": attention.qkv.bias is not None,
        "projection_bias": attention.proj.bias is not None,
        "mlp_bias": block.mlp.fc1.bias is not None,
        "patch_bias": model.patch_embed.proj.bias is not None,
        "layerscale_value": None if isinstance(block.ls1, nn.Identity) else 1.0,
        "pre_layernorm": not isinstance(model.norm_pre, nn.Identity),
        "final_norm": final_norm,
        "use_cls_token": model.cls_token is not None,
        "num_register_tokens": registers,
        "pooling": "cls+register" if distilled else POOLINGS[model.global_pool],
        "position_antialias": True,
    } | (hybrid_fields(model.patch_embed) if is_hybrid(model) else {})


def to_ours(model: nn.Module, options: dict[str, Any]) -> Weights:
    """Weights by our names and shapes."""
    theirs = {name: value.detach() for name, value in model.state_dict().items()}
    table, num_cls = theirs["pos_embed"], int(options["use_cls_token"])
    registers = [theirs[name] for name in ("dist_token", "reg_token") if name in theirs]
    registers = torch.cat(registers, dim=1) if registers else None
    num_registers = options["num_register_tokens"]
    if getattr(model, "no_embed_class", False):  # the table has places for patches alone
        table = torch.cat((table.new_zeros(1, num_cls, table.shape[2]), table), dim=1)
    elif registers is not None:
        # What the table adds to registers is a part of them.
        registers = registers + table[:, num_cls : num_cls + num_registers]
        table = torch.cat((table[:, :num_cls], table[:, num_cls + num_registers :]), dim=1)
    ours = {"vit.embeddings.position_encoding.position_embeddings": table}
    if num_cls:
        ours["vit.embeddings.cls_token"] = theirs["cls_token"]
    if registers is not None:
        ours["vit.embeddings.register_tokens"] = registers
    norms = {"norm_pre": "vit.pre_layernorm", "norm": "vit.layernorm", "fc_norm": "vit.layernorm"}
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    for name, value in theirs.items():
        module, _, kind = name.rpartition(".")
        if name.startswith("patch_embed.proj."):
            ours[f"vit.embeddings.patch_embeddings.projection.{kind}"] = value
        elif name.startswith("patch_embed.backbone."):
            part = backbone_name(name.removeprefix("patch_embed.backbone."))
            ours[f"vit.embeddings.patch_embeddings.backbone.{part}"] = value
        elif module in norms:
            ours[f"{norms[module]}.{kind}"] = value
        elif name.startswith("blocks."):
            _, index, part = module.split(".", 2)
            block = f"vit.layers.{index}"
            if part == "attn.qkv":
                for projection, third in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                    ours[f"{block}.attention.{projection}.{kind}"] = third
            elif part in ("ls1", "ls2"):
                ours[f"{block}.layer_scale{part[-1]}.lambda1"] = value
            elif part == "mlp.fc1" and options["mlp_type"] == "gated":
                first, second = value.chunk(2)
                gate, up = (first, second) if model.blocks[0].mlp.gate_last is False else (second, first)
                ours |= {f"{block}.mlp.gate_proj.{kind}": gate, f"{block}.mlp.up_proj.{kind}": up}
            elif part == "mlp.fc2" and options["mlp_type"] == "gated":
                ours[f"{block}.mlp.down_proj.{kind}"] = value
            else:
                ours[f"{block}.{parts.get(part, part)}.{kind}"] = value
    if options["num_labels"] and "dist_token" in theirs:
        heads = ("head", "head_dist")
        ours["classifier.weight"] = torch.cat([theirs[f"{head}.weight"] for head in heads], dim=1) / 2
        ours["classifier.bias"] = sum(theirs[f"{head}.bias"] for head in heads) / 2
    elif options["num_labels"]:
        ours |= {f"classifier.{kind}": theirs[f"head.{kind}"] for kind in ("weight", "bias")}
    return ours


def read_processor(model: nn.Module, options: dict[str, Any]) -> AdaptiveViTImageProcessor:
    """Resizes, crops and normalises as the model's `pretrained_cfg` says."""
    said = getattr(model, "pretrained_cfg", None) or {}
    _, height, width = said.get("input_size", (0, *model.patch_embed.img_size))
    cropped = height == width and said.get("crop_mode", "center") == "center"
    return AdaptiveViTImageProcessor(
        size=(
            {"shortest_edge": int(height / said.get("crop_pct", 0.875))}
            if cropped
            else {"height": height, "width": width}
        ),
        do_center_crop=cropped,
        crop_size={"height": height, "width": width},
        resample=INTERPOLATIONS.get(said.get("interpolation", "bicubic"), 3),
        image_mean=list(said.get("mean", (0.5, 0.5, 0.5))),
        image_std=list(said.get("std", (0.5, 0.5, 0.5))),
        patch_size=options["patch_size"],
    )
