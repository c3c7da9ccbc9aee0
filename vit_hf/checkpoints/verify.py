"""Small models of every family with random weights, and how far `convert` is from them.

What tests check and `scripts/convert.py --verify-all` prints.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import transformers as t
from torch import nn

from .convert import convert
from .verify_hybrid import verify_hybrid


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
# The first is native.
SIZES = [(32, 32), (48, 64), (24, 16)]
# Class, configuration, its fields, and whether other sizes must be asked for.
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
    "siglip_vision_model": (t.SiglipVisionModel, t.SiglipVisionConfig, TINY, True),
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
    """A model of the family with random weights, none of which is zero or one."""
    model_class, config_class, fields, _ = ORIGINALS[name]
    model = model_class(config_class(**fields)).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn_like(value))
    return model


@torch.no_grad()
def theirs(model: nn.Module, name: str, images: torch.Tensor) -> torch.Tensor:
    """Logits of the original, or the last hidden states as ours has them: normalised, and in raster order."""
    kwargs = {"interpolate_pos_encoding": True} if ORIGINALS[name][3] else {}
    outputs = model(images, **kwargs)
    if "logits" in outputs:
        return outputs.logits
    if name == "siglip_vision_model":
        return outputs.pooler_output
    states = outputs.last_hidden_state
    if name == "vit_mae":  # masks nothing, and yet shuffles
        order = outputs.ids_restore.unsqueeze(-1).expand(-1, -1, states.shape[-1])
        states = torch.cat((states[:, :1], states[:, 1:].gather(1, order)), dim=1)
    return model.post_layernorm(states) if name == "clip_vision_model" else states


@torch.no_grad()
def ours(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    outputs = model(images)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


@dataclass
class Verdict:
    """What came of one original.

    Attributes:
        name: key of `ORIGINALS`, or "hybrid".
        original: its class in transformers, or timm.
        native, other: largest difference of outputs, at the model's own image size and at others.
        selection: whether the same model then computes on fewer patches.
    """

    name: str
    original: str
    native: float
    other: float
    selection: bool


def verify_all() -> Iterator[Verdict]:
    """Converts every original and compares the outputs."""
    for name in ORIGINALS:
        torch.manual_seed(0)
        model = original(name)
        converted, _ = convert(model)
        differences = []
        for size in SIZES:
            images = torch.randn(2, 3, *size)
            difference = (ours(converted, images) - theirs(model, name, images)).abs().max()
            differences.append(float(difference))
        fewer, _ = convert(model, patch_selector="variance", num_selected_patches=6)
        with torch.no_grad():
            selected = fewer(torch.randn(1, 3, 48, 64)).selected_patches
        yield Verdict(
            name, type(model).__name__, differences[0], max(differences[1:]), selected.shape == (1, 6)
        )
    for verdict in verify_hybrid():
        yield Verdict(*verdict)
