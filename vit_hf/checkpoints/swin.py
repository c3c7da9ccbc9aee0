"""Converts Swin and SwinV2 of transformers and timm to an AdaptiveSwin with the same outputs."""

import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..model.configuration_adaptive_swin import AdaptiveSwinConfig, read_swinv2
from ..model.modeling_adaptive_swin import (
    RENAMED,
    AdaptiveSwinBackbone,
    AdaptiveSwinForImageClassification,
    AdaptiveSwinForMaskedImageModeling,
    AdaptiveSwinModel,
    AdaptiveSwinPreTrainedModel,
)
from .families import CannotConvert, Weights, load_state
from .timm_parts import ACTIVATIONS, read_labels, refuse


# Image processors in transformers that models without a path get, by `model_type`.
SWIN_FAMILIES = {"swin": "ViTImageProcessor", "swinv2": "ViTImageProcessor"}

# Our class for each of theirs, which may be named after either family.
CLASSES: dict[str, type[AdaptiveSwinPreTrainedModel]] = {
    "Model": AdaptiveSwinModel,
    "ForImageClassification": AdaptiveSwinForImageClassification,
    "ForMaskedImageModeling": AdaptiveSwinForMaskedImageModeling,
    "Backbone": AdaptiveSwinBackbone,
}
# Entries of a configuration about the object, not the model.
ELSEWHERE = (
    "model_type",
    "architectures",
    "transformers_version",
    "hidden_size",
    "num_layers",
    "stage_names",
)


def convert_swin(model: PreTrainedModel, **fields: Any) -> AdaptiveSwinPreTrainedModel:
    """Converts a Swin or SwinV2 of transformers to ours, of its dtype, in evaluation mode.

    Raises:
        CannotConvert: for a class that ours have none for, or weights without a place.
    """
    name = re.sub(r"^Swin(v2)?", "", type(model).__name__)
    if name not in CLASSES:
        raise CannotConvert(
            f"{type(model).__name__} has no counterpart among AdaptiveSwin{', AdaptiveSwin'.join(CLASSES)}."
        )
    values = {key: value for key, value in model.config.to_dict().items() if key not in ELSEWHERE}
    if model.config.model_type == "swinv2":
        try:
            values |= read_swinv2(values)
        except ValueError as error:
            raise CannotConvert(str(error)) from error
    return _load(CLASSES[name], AdaptiveSwinConfig(**values | fields), rename(model), model)


def rename(model: PreTrainedModel) -> Weights:
    """Returns the weights with our names."""
    weights = {}
    is_backbone = type(model).__name__ == "SwinBackbone"
    for name, value in model.state_dict().items():
        if is_backbone:  # ours has the encoder in it, and not below it
            name = name.removeprefix("swin.")
        name = re.sub(r"^swinv2\.", "swin.", name)
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        weights[name] = value
    if is_backbone:
        weights = {name: value for name, value in weights.items() if not name.startswith("layernorm.")}
    return weights


def _load(
    model_class: type[AdaptiveSwinPreTrainedModel],
    config: AdaptiveSwinConfig,
    weights: Weights,
    model: nn.Module,
) -> AdaptiveSwinPreTrainedModel:
    if model_class is AdaptiveSwinModel:
        has_mask = "embeddings.mask_token" in weights
        result = AdaptiveSwinModel(
            config, add_pooling_layer=model.pooler is not None, use_mask_token=has_mask
        )
    else:
        result = model_class(config)
    report = load_state(result, weights)
    missing = [name for name in report.missing_keys if not name.removeprefix("swin.").startswith("selector.")]
    if missing or report.unexpected_keys:
        raise CannotConvert(
            f"Unexpected weights: {report.unexpected_keys[:5]}; missing weights: {missing[:5]}."
        )
    return result.to(next(model.parameters()).dtype).eval()


def convert_timm_swin(model: nn.Module, **fields: Any) -> tuple[AdaptiveSwinPreTrainedModel, dict[str, Any]]:
    """Converts timm's `SwinTransformer` or `SwinTransformerV2` to our classifier; also returns the
    configuration fields.

    Other sizes than the native have windows as timm with `dynamic_img_size=True`. A model without classes has
    the pooled features as logits.

    Raises:
        CannotConvert: naming every option that an AdaptiveSwin does not have.
    """
    options = read_timm_config(model) | fields
    weights = timm_weights(model)
    return _load(AdaptiveSwinForImageClassification, AdaptiveSwinConfig(**options), weights, model), options


def read_timm_config(model: nn.Module) -> dict[str, Any]:
    """Reads fields of `AdaptiveSwinConfig`. Windows and shifts are those that timm chose for the native
    size."""
    blocks = [list(stage.blocks) for stage in model.layers]
    first = blocks[0][0]
    is_v2 = type(model).__name__ == "SwinTransformerV2"
    activation, embed = type(first.mlp.act).__name__, model.patch_embed
    every = [block for stage in blocks for block in stage]
    norms = [part for part in model.modules() if isinstance(part, nn.LayerNorm)]
    widths = [stage[0].norm1.normalized_shape[0] for stage in blocks]
    ratios = {block.mlp.fc1.out_features / block.mlp.fc1.in_features for block in every}
    refuse(
        type(model).__name__,
        {
            f"the activation {activation}": activation not in ACTIVATIONS,
            "norms other than LayerNorm with eps=1e-5": any(norm.eps != 1e-5 for norm in norms)
            or not isinstance(first.norm1, nn.LayerNorm),
            "no norm after the patch embedding": not isinstance(embed.norm, nn.LayerNorm),
            f"global_pool={model.head.global_pool.pool_type!r}": model.head.global_pool.pool_type != "avg",
            f"stages of {widths} channels": widths != [widths[0] * 2**index for index in range(len(widths))],
            f"feed-forward networks of {sorted(ratios)} times the channels": len(ratios) != 1,
            "heads of other width than channels / heads": any(
                block.attn.proj.in_features != block.attn.dim for block in every
            ),
            "windows that differ inside a stage": any(
                len({tuple(block.window_size) for block in stage}) > 1 for stage in blocks
            ),
            "shifts in other blocks than every other": any(
                len({tuple(block.shift_size) for block in stage[start::2]}) > 1
                or (not start and any(stage[0].shift_size))
                for stage in blocks
                for start in (0, 1)
            ),
        },
        "AdaptiveSwin",
    )
    side = {
        name: value[0] if value[0] == value[1] else list(value)
        for name, value in (("image_size", embed.img_size), ("patch_size", embed.patch_size))
    }
    options = {
        **side,
        "num_channels": embed.proj.in_channels,
        "embed_dim": widths[0],
        "depths": [len(stage) for stage in blocks],
        "num_heads": [stage[0].attn.num_heads for stage in blocks],
        "window_size": [list(stage[0].window_size) for stage in blocks],
        "shift_size": [list(stage[-1 if len(stage) == 1 else 1].shift_size) for stage in blocks],
        "window_fit": "fixed",
        "pad_before_shift": False,
        "mlp_ratio": ratios.pop(),
        "hidden_act": ACTIVATIONS[activation],
        "layer_norm_eps": 1e-5,
        "encoder_stride": embed.patch_size[0] * 2 ** (len(blocks) - 1),
        **(read_labels(model) or {"num_labels": model.num_classes}),
    }
    if is_v2:
        pretrained = [list(stage[0].attn.pretrained_window_size) for stage in blocks]
        return options | {
            "qkv_bias": first.attn.q_bias is not None,
            "pretrained_window_sizes": pretrained,
            "position_encoding": "relative_bias_continuous",
            "cosine_attention": True,
            "post_norm": True,
            "key_bias": False,
        }
    return options | {"qkv_bias": first.attn.qkv.bias is not None}


TIMM_PARTS = (
    (r"^patch_embed\.proj\.", "swin.embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "swin.embeddings.norm."),
    (r"^norm\.", "swin.layernorm."),
    (r"^head\.fc\.", "classifier."),
    (r"^layers\.", "swin.encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.logit_scale$", ".attention.logit_scale"),
    (
        r"\.attn\.relative_position_bias_table$",
        ".attention.relative_position_bias.relative_position_bias_table",
    ),
    (r"\.attn\.cpb_mlp\.", ".attention.relative_position_bias.continuous_position_bias_mlp."),
)


def timm_weights(model: nn.Module) -> Weights:
    """Returns the weights with our names. timm merges cells at the start of a stage, ours at the end of the
    one before."""
    ours = {}
    for name, value in model.state_dict().items():
        value = value.detach()
        for pattern, replacement in TIMM_PARTS:
            name = re.sub(pattern, replacement, name)
        merging = re.search(r"layers\.(\d+)\.downsample\.", name)
        block, _, part = name.partition(".attn.")
        if merging:
            ours[name.replace(merging[0], f"layers.{int(merging[1]) - 1}.downsample.")] = value
        elif part.startswith("qkv."):
            for projection, third in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                ours[f"{block}.attention.{projection}.{part.removeprefix('qkv.')}"] = third
        elif part in ("q_bias", "v_bias"):
            ours[f"{block}.attention.{part[0]}_proj.bias"] = value
        else:
            ours[name] = value
    weight = ours.get("classifier.weight")
    if weight is not None:
        ours.setdefault("classifier.bias", torch.zeros(len(weight), dtype=weight.dtype))
    return ours
