"""Converts timm modules: `VisionTransformer` (and `VisionTransformerDistilled`), `Eva` and Swins."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.image_processing_adaptive_vit import AdaptiveViTImageProcessor
from ..model.modeling_adaptive_swin import AdaptiveSwinForImageClassification
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification
from ..model.options import type_of
from . import timm_eva
from .families import CannotConvert, Weights, load_state
from .swin import convert_timm_swin
from .timm_parts import (
    check_blocks,
    feed_forward,
    hybrid_fields,
    is_hybrid,
    refuse,
    shared_options,
    shared_weights,
    unsupported_options,
)


logger = logging.get_logger(__name__)

SWINS = ("SwinTransformer", "SwinTransformerV2")
INTERPOLATIONS = {"nearest": 0, "bilinear": 2, "bicubic": 3, "lanczos": 1}


def is_timm(model: nn.Module) -> bool:
    return type(model).__module__.startswith("timm.")


def convert_timm(
    model: nn.Module, **fields: Any
) -> tuple[AdaptiveViTForImageClassification | AdaptiveSwinForImageClassification, AdaptiveViTImageProcessor]:
    """Converts a timm model to an AdaptiveViT or AdaptiveSwin with the same outputs, with an image processor
    for its `pretrained_cfg`.

    Other sizes than the native are interpolated as timm does with `dynamic_img_size=True`. A model without
    classes has the pooled features as logits.

    Raises:
        CannotConvert: for another class, or an option that an AdaptiveViT does not have.
    """
    name = type(model).__name__
    if name in SWINS:
        result, options = convert_timm_swin(model, **fields)
        return result, read_processor(model, options)
    if name not in CLASSES:
        raise CannotConvert(f"Of timm, {', '.join([*CLASSES, *SWINS])} can be converted, not {name}.")
    read, rename = CLASSES[name]
    options = read(model) | fields
    weights = rename(model, options)
    result = AdaptiveViTForImageClassification(AdaptiveViTConfig(**options))
    report = load_state(result, weights)
    added = ("vit.selector.", "vit.reducers.", "vit.embeddings.scale_embedding")
    missing = [name for name in report.missing_keys if not name.startswith(added)]
    if missing or report.unexpected_keys:
        raise CannotConvert(
            f"Unexpected weights: {report.unexpected_keys[:5]}; missing weights: {missing[:5]}."
        )
    dtype = next(model.parameters()).dtype
    return result.to(dtype).eval(), read_processor(model, options)


def read_config(model: nn.Module) -> dict[str, Any]:
    """Reads fields of `AdaptiveViTConfig` for a `VisionTransformer`.

    Raises:
        CannotConvert: naming every option that an AdaptiveViT does not have.
    """
    check_blocks(model, "Block")
    block = model.blocks[0]
    mlp, attention = type(block.mlp).__name__, block.attn
    refuse(
        type(model).__name__,
        {
            f"feed-forward networks of type {mlp}": mlp not in ("Mlp", "GluMlp", "SwiGLUPacked"),
            "norms of queries and keys": not isinstance(attention.q_norm, nn.Identity),
            **unsupported_options(model),
            "no position embedding": model.pos_embed is None,
        },
    )
    gated = mlp != "Mlp"
    return (
        shared_options(model)
        | {
            "intermediate_size": block.mlp.fc1.out_features // (2 if gated else 1),
            "feed_forward": feed_forward(model, "gated" if gated else "mlp"),
            "qkv_bias": attention.qkv.bias is not None,
            "layerscale_value": None if isinstance(block.ls1, nn.Identity) else 1.0,
        }
        | (hybrid_fields(model.patch_embed) if is_hybrid(model) else {})
    )


def to_ours(model: nn.Module, options: dict[str, Any]) -> Weights:
    """Returns the weights of a `VisionTransformer` with our names and shapes."""
    theirs = {name: value.detach() for name, value in model.state_dict().items()}
    ours = shared_weights(model, theirs)
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    parts["attn.norm"] = "attention.norm"
    for name, value in theirs.items():
        if not name.startswith("blocks."):
            continue
        module, _, kind = name.rpartition(".")
        _, index, part = module.split(".", 2)
        block = f"vit.layers.{index}"
        if part == "attn.qkv":
            for projection, third in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                ours[f"{block}.attention.{projection}.{kind}"] = third
        elif part in ("ls1", "ls2"):
            ours[f"{block}.layer_scale{part[-1]}.lambda1"] = value
        elif part == "mlp.fc1" and type_of(options["feed_forward"]) == "gated":
            first, second = value.chunk(2)
            gate, up = (first, second) if model.blocks[0].mlp.gate_last is False else (second, first)
            ours |= {f"{block}.mlp.gate_proj.{kind}": gate, f"{block}.mlp.up_proj.{kind}": up}
        elif part == "mlp.fc2" and type_of(options["feed_forward"]) == "gated":
            ours[f"{block}.mlp.down_proj.{kind}"] = value
        else:
            ours[f"{block}.{parts.get(part, part)}.{kind}"] = value
    return ours


def read_processor(model: nn.Module, options: dict[str, Any]) -> AdaptiveViTImageProcessor:
    """Makes a processor that resizes, crops and normalizes like timm's `create_transform` for the model's
    `pretrained_cfg`.

    Of its `crop_mode`s ours has "squash", and "center" for square images; with a warning, others become
    "squash".
    """
    said = getattr(model, "pretrained_cfg", None) or {}
    native, channels = model.patch_embed.img_size, options["num_channels"]
    if getattr(model, "dynamic_img_size", False) or native is None:
        native = (said.get("input_size") or (0, *(native or (224, 224))))[1:]
    height, width = native
    resized = [math.floor(side / (said.get("crop_pct") or 0.875)) for side in native]
    mode = said.get("crop_mode") or "center"
    size = {"height": resized[0], "width": resized[1]}
    if mode not in ("squash", "border") and resized[0] == resized[1]:
        size = {"shortest_edge": resized[0]}
    elif mode != "squash":
        logger.warning(
            f"timm prepares images with crop_mode={mode!r} for {height}x{width} pixels, which keeps their "
            f"aspect. The image processor has no such option, and resizes them to {resized[0]}x{resized[1]} "
            "whatever their aspect: for outputs as timm's, prepare images with timm.data.create_transform."
        )
    return AdaptiveViTImageProcessor(
        size=size,
        do_center_crop="shortest_edge" in size or resized != [height, width],
        crop_size={"height": height, "width": width},
        resample=INTERPOLATIONS.get(said.get("interpolation") or "bicubic", 3),
        image_mean=for_channels(said.get("mean") or IMAGENET_DEFAULT_MEAN, channels),
        image_std=for_channels(said.get("std") or IMAGENET_DEFAULT_STD, channels),
        do_convert_rgb=channels == 3,
        patch_size=options["patch_size"],
    )


def for_channels(values: Sequence[float], channels: int) -> list[float]:
    """Returns one value per channel: the given ones, or their mean if the numbers differ, as in timm."""
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels


CLASSES: dict[
    str, tuple[Callable[[nn.Module], dict[str, Any]], Callable[[nn.Module, dict[str, Any]], Weights]]
] = {
    "VisionTransformer": (read_config, to_ours),
    "VisionTransformerDistilled": (read_config, to_ours),
    "Eva": (timm_eva.read_config, timm_eva.to_ours),
}
