"""The families of Vision Transformers in our terms: configuration fields and weight names."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import (
    AutoVideoProcessor,
    PretrainedConfig,
    PreTrainedModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, cached_file
from transformers.video_processing_utils import BaseVideoProcessor

from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.modeling_adaptive_vit import AdaptiveViTForPreTraining
from ..model.sizes import to_pair


# Fields that mean the same everywhere.
SHARED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
)
LABELS = ("id2label", "label2id", "problem_type")


class CannotConvert(ValueError):
    """The checkpoint has something that an AdaptiveViT cannot represent."""


Weights = dict[str, torch.Tensor]


def load_state(model: nn.Module, weights: Weights) -> Any:
    """Copies weights, and reports unexpected and missing ones.

    Raises:
        CannotConvert: if one has another shape than its place.
    """
    try:
        return model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CannotConvert(
            "Weights do not have the shapes of our parameters. Leave out fields that change shapes; "
            "image_size is the native size of a table of positions, and a converted model takes images of "
            f"any size all the same. {error}"
        ) from error


def no_weights(model: nn.Module) -> Weights:
    return {}


def linear_head(model: nn.Module) -> Weights | None:
    head = getattr(model, "classifier", None)
    return head.state_dict() if isinstance(head, nn.Linear) else None


def unchanged(weights: Weights, config: PretrainedConfig) -> Weights:
    return weights


def no_head(model: nn.Module) -> None:
    """Raises: CannotConvert if there is one after all."""
    if linear_head(model) is not None:
        raise CannotConvert(
            f"{type(model).__name__} pools in a way that AdaptiveViT does not have; convert its encoder "
            "alone."
        )


@dataclass(frozen=True)
class Family:
    """Rules for reading checkpoints of one `model_type`.

    Attributes:
        fields: converts their configuration to our fields, in addition to `SHARED`.
        rename: patterns and replacements, applied in order to each name of a weight, without the prefix of
            the base model; `None` for weights that are left out.
        prefix: prefix of the base model in a model with a head.
        head: weight and bias of the classifier of a model; None if it has none.
        processor: name in transformers of the image processor that models without a path get.
        finish: changes beyond renaming, given all weights by our names, and their configuration.
        with_head: fields of our configuration where there is a classifier.
        pooled: weights of a norm of what a model with a classifier pools, by our names.
    """

    fields: Callable[[PretrainedConfig], dict[str, Any]]
    rename: tuple[tuple[str, str | None], ...]
    prefix: str
    head: Callable[[nn.Module], Weights | None] = linear_head
    finish: Callable[[Weights, PretrainedConfig], Weights] = unchanged
    processor: str = "ViTImageProcessor"
    with_head: dict[str, Any] = field(default_factory=dict)
    pooled: Callable[[nn.Module], Weights] = no_weights

    def name(self, name: str) -> str | None:
        """Returns our name of a base model's weight; None if it is left out."""
        for pattern, replacement in self.rename:
            if re.search(pattern, name):
                if replacement is None:
                    return None
                name = re.sub(pattern, replacement, name)
        return name


POSITIONS = (r"^embeddings\.position_embeddings$", "embeddings.position_encoding.position_embeddings")


def vit_fields(config: PretrainedConfig) -> dict[str, Any]:
    names = ("intermediate_size", "qkv_bias", "hidden_dropout_prob", "attention_probs_dropout_prob")
    return {name: getattr(config, name) for name in names}


def dinov2_fields(config: PretrainedConfig) -> dict[str, Any]:
    hidden = int(config.hidden_size * config.mlp_ratio)
    gated = config.use_swiglu_ffn
    if gated:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return {
        "intermediate_size": hidden,
        "feed_forward": "gated" if gated else "mlp",
        "hidden_act": "silu" if gated else config.hidden_act,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": config.hidden_dropout_prob,
        "attention_probs_dropout_prob": config.attention_probs_dropout_prob,
        "drop_path_rate": config.drop_path_rate,
        "layerscale_value": config.layerscale_value,
        "num_register_tokens": getattr(config, "num_register_tokens", 0),
        "position_encoding": {"type": "learned", "antialias": hasattr(config, "num_register_tokens")},
        "pooling": "cls+mean",
        "pooler": "cls",
    }


def dinov3_fields(config: PretrainedConfig) -> dict[str, Any]:
    if not (config.query_bias == config.value_bias):
        raise CannotConvert(
            f"query_bias={config.query_bias} and value_bias={config.value_bias} differ; AdaptiveViT has one "
            "qkv_bias."
        )
    return {
        "intermediate_size": config.intermediate_size,
        "feed_forward": {"type": "gated" if config.use_gated_mlp else "mlp", "bias": config.mlp_bias},
        "qkv_bias": config.query_bias,
        "key_bias": config.key_bias,
        "attention": {"projection_bias": config.proj_bias},
        "attention_probs_dropout_prob": config.attention_dropout,
        "drop_path_rate": config.drop_path_rate,
        "layerscale_value": config.layerscale_value,
        "num_register_tokens": config.num_register_tokens,
        "position_encoding": {
            "type": "rotary",
            "base": config.rope_theta,
            "coordinates": "normalized",
            "shift": config.pos_embed_shift,
            "jitter": config.pos_embed_jitter,
            "rescale": config.pos_embed_rescale,
        },
        "pooler": "cls",
    }


def clip_fields(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "intermediate_size": config.intermediate_size,
        "attention_probs_dropout_prob": config.attention_dropout,
        "pre_layernorm": True,
        "patch_embedding": {"type": "linear", "bias": False},
        "pooler": "cls",
    }


def deit_fields(config: PretrainedConfig) -> dict[str, Any]:
    # The distillation token is a register; what its position adds is a part of it.
    return vit_fields(config) | {"num_register_tokens": 1}


def deit_finish(weights: Weights, config: PretrainedConfig) -> Weights:
    """Moves the distillation token's position from the table into the register token."""
    table = weights["embeddings.position_encoding.position_embeddings"]
    return weights | {
        "embeddings.position_encoding.position_embeddings": torch.cat((table[:, :1], table[:, 2:]), dim=1),
        "embeddings.register_tokens": weights["embeddings.register_tokens"] + table[:, 1:2],
    }


def deit_head(model: nn.Module) -> Weights | None:
    """Merges both heads into one that reads CLS and distillation token: the mean of their logits."""
    if not hasattr(model, "distillation_classifier"):
        return linear_head(model)
    heads = (model.cls_classifier, model.distillation_classifier)
    return {
        "weight": torch.cat([head.weight.detach() for head in heads], dim=1) / 2,
        "bias": sum(head.bias.detach() for head in heads) / 2,
    }


def beit_fields(config: PretrainedConfig) -> dict[str, Any]:
    table, shared = config.use_relative_position_bias, config.use_shared_relative_position_bias
    if table and shared:
        raise CannotConvert("This has a table of relative positions for each block and a shared one as well.")
    if (table or shared) and config.use_absolute_position_embeddings:
        raise CannotConvert("This has absolute and relative positions at once; AdaptiveViT has one encoding.")
    if table or shared:
        encoding = {"type": "relative_bias", "shared": bool(shared)}
    else:
        encoding = "learned" if config.use_absolute_position_embeddings else "none"
    return {
        "intermediate_size": config.intermediate_size,
        "hidden_dropout_prob": config.hidden_dropout_prob,
        "attention_probs_dropout_prob": config.attention_probs_dropout_prob,
        "drop_path_rate": config.drop_path_rate,
        "layerscale_value": config.layer_scale_init_value if config.layer_scale_init_value > 0 else None,
        "key_bias": False,
        "position_encoding": encoding,
        "pooling": "mean" if config.use_mean_pooling else "cls",
        "pooler": "mean" if config.use_mean_pooling else "cls",
        "final_norm": "pooled" if config.use_mean_pooling else "tokens",
    }


def beit_finish(weights: Weights, config: PretrainedConfig) -> Weights:
    """Merges the tables of all blocks into one parameter."""
    ours = "embeddings.position_encoding.relative_position_bias_table"
    tables = {name: value for name, value in weights.items() if name.endswith("relative_position_bias_table")}
    if not tables:
        return weights
    blocks = sorted(tables, key=lambda name: int("0" + "".join(re.findall(r"layers\.(\d+)", name))))
    rest = {name: value for name, value in weights.items() if name not in tables}
    return rest | {ours: torch.stack([tables[name] for name in blocks])}


def siglip_fields(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "intermediate_size": config.intermediate_size,
        "attention_probs_dropout_prob": config.attention_dropout,
        "use_cls_token": False,
        "pooling": "mean",
    }


def siglip2_fields(config: PretrainedConfig) -> dict[str, Any]:
    rows, columns = to_pair(config.patch_size)
    side = math.isqrt(config.num_patches)
    return siglip_fields(config) | {
        "image_size": side * rows if rows == columns else [side * rows, side * columns],
        "position_encoding": {"type": "learned", "interpolation": "bilinear", "antialias": True},
    }


def siglip2_finish(weights: Weights, config: PretrainedConfig) -> Weights:
    """Reshapes the dense patch layer (channels last) to a convolution (channels first)."""
    name = "embeddings.patch_embeddings.projection.weight"
    matrix = weights[name].unflatten(1, (*to_pair(config.patch_size), config.num_channels))  # (D, P, P, C)
    return weights | {name: matrix.permute(0, 3, 1, 2).contiguous()}


def ijepa_fields(config: PretrainedConfig) -> dict[str, Any]:
    return vit_fields(config) | {"use_cls_token": False, "pooling": "mean"}


DINO_BLOCKS = ((r"\.norm1\.", ".layernorm_before."), (r"\.norm2\.", ".layernorm_after."))
MASK_TOKEN = (r"^embeddings\.mask_token$", None)
CLIP_NAMES = (
    (r"^embeddings\.class_embedding$", "embeddings.cls_token"),
    (r"^embeddings\.patch_embedding\.", "embeddings.patch_embeddings.projection."),
    (r"^embeddings\.position_embedding\.weight$", "embeddings.position_encoding.position_embeddings"),
    (r"^pre_layrnorm\.", "pre_layernorm."),
    (r"^post_layernorm\.", "layernorm."),
    (r"^encoder\.layers\.", "layers."),
    (r"\.self_attn\.out_proj\.", ".attention.o_proj."),
    (r"\.self_attn\.", ".attention."),
    (r"\.layer_norm1\.", ".layernorm_before."),
    (r"\.layer_norm2\.", ".layernorm_after."),
)
BEIT = Family(
    beit_fields,
    (
        POSITIONS,
        MASK_TOKEN,
        (r"\.lambda_(\d)$", r".layer_scale\1.lambda1"),
        (r"^pooler\.layernorm\.", "layernorm."),
        (r"^encoder\.layer\.", "layers."),
        # transformers' data2vec has the names that its BEiT had before version 5.
        (r"\.attention\.attention\.query\.", ".attention.q_proj."),
        (r"\.attention\.attention\.key\.", ".attention.k_proj."),
        (r"\.attention\.attention\.value\.", ".attention.v_proj."),
        (r"\.attention\.output\.dense\.", ".attention.o_proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
    ),
    "beit",
    finish=beit_finish,
    processor="BeitImageProcessor",
)

FAMILIES: dict[str, Family] = {
    "vit": Family(vit_fields, (POSITIONS, MASK_TOKEN), "vit"),
    # Its table of positions is fixed; as a learned one it has the same values, at any resolution.
    "vit_mae": Family(vit_fields, (POSITIONS, (r"^decoder\.", None)), "vit", head=no_head),
    "deit": Family(
        deit_fields,
        (POSITIONS, MASK_TOKEN, (r"^embeddings\.distillation_token$", "embeddings.register_tokens")),
        "deit",
        deit_head,
        deit_finish,
        "DeiTImageProcessor",
    ),
    "beit": BEIT,
    "data2vec-vision": replace(BEIT, prefix="data2vec_vision"),
    "dinov2": Family(
        dinov2_fields,
        (POSITIONS, MASK_TOKEN, *DINO_BLOCKS, (r"^encoder\.layer\.", "layers.")),
        "dinov2",
        processor="BitImageProcessor",
    ),
    "dinov2_with_registers": Family(
        dinov2_fields,
        (POSITIONS, MASK_TOKEN, *DINO_BLOCKS, (r"^encoder\.layer\.", "layers.")),
        "dinov2_with_registers",
        processor="BitImageProcessor",
    ),
    "dinov3_vit": Family(
        dinov3_fields,
        (
            MASK_TOKEN,
            *DINO_BLOCKS,
            (r"^embeddings\.patch_embeddings\.", "embeddings.patch_embeddings.projection."),
            (r"^(model\.)?layer\.", "layers."),
            (r"^norm\.", "layernorm."),
            # With two layers, not gated.
            (r"\.mlp\.up_proj\.", ".mlp.fc1."),
            (r"\.mlp\.down_proj\.", ".mlp.fc2."),
        ),
        "dinov3_vit",
        head=no_head,
        processor="DINOv3ViTImageProcessor",
    ),
    "ijepa": Family(ijepa_fields, (POSITIONS, MASK_TOKEN), "ijepa"),
    "siglip_vision_model": Family(
        siglip_fields,
        CLIP_NAMES,
        "vision_model",
        processor="SiglipImageProcessor",
    ),
    "siglip2_vision_model": Family(
        siglip2_fields,
        CLIP_NAMES,
        "vision_model",
        finish=siglip2_finish,
        processor="Siglip2ImageProcessor",
    ),
    "clip_vision_model": Family(
        clip_fields,
        CLIP_NAMES,
        "vision_model",
        processor="CLIPImageProcessor",
        # transformers' classifier reads the mean of patches without the last norm.
        with_head={"pooling": "mean", "final_norm": "none"},
    ),
}


# The epsilon of VideoMAE's norm of the mean, which its configuration does not name.
VIDEOMAE_POOLED_EPS = 1e-5


def vivit_fields(config: PretrainedConfig) -> dict[str, Any]:
    num_frames, *patch_size = config.tubelet_size
    return vit_fields(config) | {
        "num_frames": config.num_frames,
        "tubelet_size": num_frames,
        "patch_size": patch_size[0] if patch_size[0] == patch_size[1] else patch_size,
    }


def videomae_fields(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "intermediate_size": config.intermediate_size,
        "hidden_dropout_prob": config.hidden_dropout_prob,
        "attention_probs_dropout_prob": config.attention_probs_dropout_prob,
        "num_frames": config.num_frames,
        "tubelet_size": config.tubelet_size,
        "qkv_bias": config.qv_bias,
        "key_bias": False,
        "use_cls_token": False,
        "pooling": "mean",
        "final_norm": (
            {"type": "pooled", "eps": VIDEOMAE_POOLED_EPS} if config.use_mean_pooling else "tokens"
        ),
    }


def videomae_head(model: nn.Module) -> Weights | None:
    head = linear_head(model)
    if head is not None and model.fc_norm is None:
        raise CannotConvert(
            "With use_mean_pooling=False this classifier reads the first patch alone, which AdaptiveViT may "
            "not select; convert its encoder, model.videomae."
        )
    return head


def videomae_pooled(model: nn.Module) -> Weights:
    """Returns the norm of the classifier's pooled features."""
    return {f"layernorm.{name}": value for name, value in model.fc_norm.state_dict().items()}


def videomae_finish(weights: Weights, config: PretrainedConfig) -> Weights:
    """Its fixed table of positions, a sinusoid of the raster index from 0, as a learned one of the same
    values.

    Ours of that name counts from 1, and is computed in float32, where the fast angles of late patches are
    coarse.
    """
    height, width = (
        side // patch
        for side, patch in zip(to_pair(config.image_size), to_pair(config.patch_size), strict=True)
    )
    positions = np.arange(config.num_frames // config.tubelet_size * height * width)
    channels = np.arange(config.hidden_size)
    table = positions[:, None] / 10000 ** (2 * (channels // 2) / config.hidden_size)
    table = np.where(channels % 2, np.cos(table), np.sin(table))
    name = "embeddings.position_encoding.position_embeddings"
    return weights | {name: torch.from_numpy(table).float()[None]}


VIDEO_FAMILIES: dict[str, Family] = {
    "vivit": Family(vivit_fields, (POSITIONS,), "vivit", processor="VivitVideoProcessor"),
    "videomae": Family(
        videomae_fields,
        (
            (r"^encoder\.layer\.", "layers."),
            (r"\.attention\.attention\.query\.", ".attention.q_proj."),
            (r"\.attention\.attention\.key\.", ".attention.k_proj."),
            (r"\.attention\.attention\.value\.", ".attention.v_proj."),
            (r"\.attention\.output\.dense\.", ".attention.o_proj."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
        ),
        "videomae",
        videomae_head,
        videomae_finish,
        "VideoMAEVideoProcessor",
        pooled=videomae_pooled,
    ),
}


def convert_video_processor(path: str | None, model: PreTrainedModel) -> BaseVideoProcessor:
    """Loads a checkpoint's video processor, or its family's default in transformers at the model's size."""
    names = (VIDEO_PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)
    if path and any(cached_file(path, name, _raise_exceptions_for_missing_entries=False) for name in names):
        return AutoVideoProcessor.from_pretrained(path)
    height, width = to_pair(model.config.image_size)
    return getattr(transformers, VIDEO_FAMILIES[model.config.model_type].processor)(
        size={"height": height, "width": width}, do_center_crop=False
    )


# Fields of our configuration that only the encoder supports.
NOT_PRETRAINED_WITH = ("patch_selector", "token_reducer", "thumbnail_context")
DECODER_FIELDS = (
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
    "mask_ratio",
    "norm_pix_loss",
)


def has_decoder(model: torch.nn.Module, fields: dict[str, Any]) -> bool:
    """Checks for a decoder to convert; with selection or reduction only the encoder is converted."""
    return isinstance(model, ViTMAEForPreTraining) and not any(map(fields.get, NOT_PRETRAINED_WITH))


def decoder_fields(config: ViTMAEConfig) -> dict[str, Any]:
    """Fields of `AdaptiveViTConfig`. The fixed table of positions has the same values as a learned one."""
    options = {name: getattr(config, name) for name in DECODER_FIELDS}
    return {"masked_autoencoder": options | {"decoder_position_encoding": "learned"}}


def convert_autoencoder(
    config: AdaptiveViTConfig, encoder: Weights, model: ViTMAEForPreTraining
) -> tuple[AdaptiveViTForPreTraining, Weights]:
    """Builds our pretraining model, and adds the decoder's weights to the given ones of the encoder."""
    decoder = {
        f"decoder.{name}": value
        for name, value in model.decoder.state_dict().items()
        if name != "decoder_pos_embed"
    }
    decoder["decoder.position_encoding.position_embeddings"] = model.decoder.decoder_pos_embed.detach()
    return AdaptiveViTForPreTraining(config), {
        f"vit.{name}": value for name, value in encoder.items()
    } | decoder
