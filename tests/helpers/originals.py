"""Small image models of every family with random weights, and how far `convert` is from their outputs.

Tests check the differences; `scripts/experiments/conversion_table.py` prints them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers as t
from torch import nn

from vit_hf import convert
from vit_hf.model.patches import ImagePatches, flatten_channels_last


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
    "initializer_range": 0.2,
}
RATIO = {**TINY, "mlp_ratio": 2}
NAFLEX = {name: value for name, value in TINY.items() if name != "image_size"} | {"num_patches": 16}
TWO_TOWERS = {
    "vision_config": TINY,
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    },
    "num_labels": 5,
}
TINY_TIMM = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 2,
    "num_classes": 5,
    "dynamic_img_size": True,
}
EVA02 = {"mlp_ratio": 8 / 3, "swiglu_mlp": True, "use_rot_pos_emb": True, "ref_feat_shape": (3, 3)}
# Class of timm.models and its arguments.
TIMM = {
    "vit": ("VisionTransformer", {}),
    "deit-distilled": ("VisionTransformerDistilled", {}),
    "deit3": ("VisionTransformer", {"no_embed_class": True, "init_values": 0.1}),
    "registers": ("VisionTransformer", {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1}),
    "siglip": ("VisionTransformer", {"class_token": False, "global_pool": "map"}),
    "eva": ("Eva", {}),
    "eva02_tiny": ("Eva", EVA02),
    "eva02_base": ("Eva", {**EVA02, "qkv_fused": False, "scale_mlp": True}),
    "eva02_base_clip": (
        "Eva",
        {**EVA02, "qkv_fused": False, "scale_mlp": True, "scale_attn_inner": True, "global_pool": "token"},
    ),
    "dinov3": (
        "Eva",
        {
            "qkv_bias": False,
            "init_values": 0.1,
            "rope_type": "dinov3",
            "rope_temperature": 100,
            "rope_rotate_half": True,
            "use_rot_pos_emb": True,
            "use_abs_pos_emb": False,
            "num_reg_tokens": 4,
            "use_fc_norm": False,
        },
    ),
    "rope_vit": (
        "Eva",
        {"use_rot_pos_emb": True, "attn_type": "rope", "rope_grid_indexing": "xy", "use_abs_pos_emb": False},
    ),
}
# Image sizes; the first is the models' own.
SIZES = [(32, 32), (48, 64), (24, 16)]
# Class, configuration, its fields, and whether other sizes need `interpolate_pos_encoding`.
ORIGINALS = {
    "vit": (t.ViTForImageClassification, t.ViTConfig, TINY, True),
    "vit-encoder": (t.ViTModel, t.ViTConfig, TINY, True),
    "vit-no-qkv-bias": (t.ViTForImageClassification, t.ViTConfig, {**TINY, "qkv_bias": False}, True),
    "deit": (t.DeiTForImageClassification, t.DeiTConfig, TINY, True),
    "deit-distilled": (t.DeiTForImageClassificationWithTeacher, t.DeiTConfig, TINY, True),
    "vit_mae": (t.ViTMAEModel, t.ViTMAEConfig, {**TINY, "mask_ratio": 0.0}, True),
    "dinov2": (t.Dinov2ForImageClassification, t.Dinov2Config, RATIO, False),
    "dinov2-swiglu": (t.Dinov2Model, t.Dinov2Config, {**RATIO, "use_swiglu_ffn": True}, False),
    "dinov2_with_registers": (
        t.Dinov2WithRegistersForImageClassification,
        t.Dinov2WithRegistersConfig,
        RATIO,
        False,
    ),
    "dinov3_vit": (t.DINOv3ViTModel, t.DINOv3ViTConfig, {**TINY, "num_register_tokens": 4}, False),
    "dinov3_vit-gated": (
        t.DINOv3ViTModel,
        t.DINOv3ViTConfig,
        {**TINY, "use_gated_mlp": True, "hidden_act": "silu"},
        False,
    ),
    "clip_vision_model": (t.CLIPVisionModel, t.CLIPVisionConfig, TINY, True),
    "clip_vision_model-classifier": (t.CLIPForImageClassification, t.CLIPConfig, TWO_TOWERS, True),
    "siglip_vision_model": (t.SiglipVisionModel, t.SiglipVisionConfig, TINY, True),
    "siglip_vision_model-classifier": (t.SiglipForImageClassification, t.SiglipConfig, TWO_TOWERS, True),
    "siglip2_vision_model": (t.Siglip2VisionModel, t.Siglip2VisionConfig, NAFLEX, False),
    "siglip2_vision_model-classifier": (
        t.Siglip2ForImageClassification,
        t.Siglip2Config,
        {**TWO_TOWERS, "vision_config": NAFLEX},
        False,
    ),
    "ijepa": (t.IJepaForImageClassification, t.IJepaConfig, TINY, True),
    "beit": (t.BeitForImageClassification, t.BeitConfig, {**TINY, "use_relative_position_bias": True}, False),
    "beit-shared": (
        t.BeitForImageClassification,
        t.BeitConfig,
        {**TINY, "use_shared_relative_position_bias": True},
        False,
    ),
    "beit-absolute": (
        t.BeitModel,
        t.BeitConfig,
        {**TINY, "use_absolute_position_embeddings": True, "use_mean_pooling": False},
        False,
    ),
    "data2vec-vision": (
        t.Data2VecVisionForImageClassification,
        t.Data2VecVisionConfig,
        {**TINY, "use_relative_position_bias": True},
        False,
    ),
}


def original(name: str) -> nn.Module:
    """Builds a model of `ORIGINALS` with random weights, none of which is zero or one."""
    model_class, config_class, fields, _ = ORIGINALS[name]
    return perturbed(model_class(config_class(**fields)))


def timm_original(name: str) -> nn.Module:
    """Builds a model of `TIMM` with random weights, none of which is zero or one."""
    from timm.models import deit, eva, vision_transformer

    class_name, fields = TIMM[name]
    module = next(file for file in (vision_transformer, deit, eva) if hasattr(file, class_name))
    return perturbed(getattr(module, class_name)(**{**TINY_TIMM, **fields}))


def timm_hybrid(cnn: dict[str, Any] | None = None, **fields: Any) -> nn.Module:
    """Builds timm's hybrid: a ResNet of stride 8 before a ViT.

    Args:
        cnn: options of timm's `ResNetV2`.
        fields: options of timm's `VisionTransformer`.

    Raises:
        ImportError: if timm is not installed.
    """
    from timm.layers import HybridEmbed, StdConv2dSame
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer import VisionTransformer

    options = {
        "layers": (1, 2),
        "channels": (128, 256),
        "stem_chs": 32,
        "stem_type": "same",
        "preact": False,
        "num_classes": 0,
        "global_pool": "",
        "conv_layer": partial(StdConv2dSame, eps=1e-8),
    }
    backbone = ResNetV2(**options | (cnn or {}))
    options = {
        "img_size": 32,
        "patch_size": 1,
        "embed_layer": partial(HybridEmbed, backbone=backbone),
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 4,
        "mlp_ratio": 2,
        "num_classes": 5,
        "dynamic_img_size": True,
    }
    return perturbed(VisionTransformer(**options | fields))


@torch.no_grad()
def perturbed(model: nn.Module) -> nn.Module:
    """Adds noise to every weight that trains, so that none is zero or one."""
    for value in model.parameters():
        if value.requires_grad:
            value.add_(0.1 * torch.randn_like(value))
    return model.eval()


@torch.no_grad()
def theirs(model: nn.Module, name: str, images: torch.Tensor) -> torch.Tensor:
    """Returns logits of the original, or its last hidden states, normalized and in raster order."""
    if name.startswith("siglip2"):
        outputs = model(**cut(images, model.config))
    else:
        outputs = model(images, **({"interpolate_pos_encoding": True} if ORIGINALS[name][3] else {}))
    if "logits" in outputs:
        return outputs.logits
    if name.startswith("siglip"):
        return outputs.pooler_output
    states = outputs.last_hidden_state
    if name == "vit_mae":  # masks nothing, and yet shuffles
        order = outputs.ids_restore.unsqueeze(-1).expand(-1, -1, states.shape[-1])
        states = torch.cat((states[:, :1], states[:, 1:].gather(1, order)), dim=1)
    return model.post_layernorm(states) if name == "clip_vision_model" else states


def cut(images: torch.Tensor, config: t.PretrainedConfig) -> dict[str, torch.Tensor]:
    """Cuts images into the patches that SigLIP 2 takes."""
    patch_size = getattr(config, "vision_config", config).patch_size
    tokens = ImagePatches.from_images(images, patch_size).gather()
    pixels = flatten_channels_last(tokens.features, patch_size)
    return {
        "pixel_values": pixels,
        "spatial_shapes": tokens.grid,
        "pixel_attention_mask": torch.ones(pixels.shape[:2], dtype=torch.long),
    }


@torch.no_grad()
def ours(model: nn.Module, pixel_values: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Returns logits of the converted model, its pooled attention output, or its last hidden states."""
    outputs = model(pixel_values, **inputs)
    if "logits" in outputs:
        return outputs.logits
    return outputs.pooler_output if model.config.pooling == "map" else outputs.last_hidden_state


@dataclass
class Comparison:
    """How far a converted model is from its original.

    Attributes:
        name: key of `ORIGINALS` or of its like; after "timm ", one of timm's; or "hybrid".
        original: class in transformers or timm.
        native, other: largest difference of outputs, at the model's own image size and at others; None if the
            original takes no others.
        selects: whether the same model then computes on fewer patches.
    """

    name: str
    original: str
    native: float
    other: float | None
    selects: bool


def compare_transformers(name: str) -> Comparison:
    """Compares a model of `ORIGINALS` with what `convert` makes of it."""
    torch.manual_seed(0)
    return compare(name, original(name), partial(theirs, name=name))


def compare_timm(name: str) -> Comparison:
    """Compares a model of `TIMM` with what `convert` makes of it."""
    torch.manual_seed(0)
    return compare(f"timm {name}", timm_original(name), call)


def compare_hybrid() -> Comparison:
    """Compares timm's hybrid with what `convert` makes of it."""
    torch.manual_seed(0)
    found = compare("hybrid", timm_hybrid(), call)
    found.original += " with HybridEmbed (timm)"
    return found


def call(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images)


@torch.no_grad()
def compare(name: str, model: nn.Module, predict: Callable[..., torch.Tensor]) -> Comparison:
    """Compares a model with what `convert` makes of it, at `SIZES`; `predict` runs the original."""
    converted, _ = convert(model)
    differences = []
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        differences.append(float((ours(converted, images) - predict(model, images=images)).abs().max()))
    fewer, _ = convert(model, patch_selector="variance", num_selected_patches=6)
    selected = fewer(torch.randn(1, 3, 48, 64)).selected_patches
    native, other = differences[0], max(differences[1:])
    return Comparison(name, type(model).__name__, native, other, selected.shape == (1, 6))
