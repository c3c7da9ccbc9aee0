"""Small Swins of transformers and timm with random weights, and how far `convert` is from their outputs.

Tests check the differences; `scripts/experiments/conversion_table.py` prints them.
"""

from collections.abc import Callable

import torch
import transformers as t
from torch import nn

from tests.helpers.originals import Comparison, perturbed
from vit_hf import convert


TINY = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 3,
    "mlp_ratio": 2.0,
    "num_labels": 5,
    "encoder_stride": 8,
}
# Class and fields of transformers.
SWIN_ORIGINALS: dict[str, tuple[str, dict]] = {
    "swin": ("SwinForImageClassification", {}),
    "swin-encoder": ("SwinModel", {}),
    "swin-absolute": ("SwinForImageClassification", {"use_absolute_embeddings": True}),
    "swin-no-qkv-bias": ("SwinForImageClassification", {"qkv_bias": False}),
    "swinv2": ("Swinv2ForImageClassification", {}),
    "swinv2-encoder": ("Swinv2Model", {}),
    "swinv2-pretrained": (
        "Swinv2ForImageClassification",
        {"window_size": 6, "pretrained_window_sizes": [4, 2]},
    ),
}
TINY_TIMM = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 3,
    "mlp_ratio": 2.0,
    "num_classes": 5,
    "dynamic_img_size": True,
}
# Class and arguments of timm.
SWIN_TIMM: dict[str, tuple[str, dict]] = {
    "swin": ("SwinTransformer", {}),
    "swin-windows": ("SwinTransformer", {"window_size": ((4, 2), (8, 3)), "qkv_bias": False}),
    "swin-always-partition": ("SwinTransformer", {"window_size": 4, "always_partition": True}),
    "swinv2": ("SwinTransformerV2", {}),
    "swinv2-pretrained": ("SwinTransformerV2", {"window_size": 6, "pretrained_window_sizes": (4, 2)}),
}
# Image sizes; the first is the models' own. In the others, windows do not divide both sides of the grid.
SIZES = [(32, 32), (48, 64), (40, 28)]


def swin_original(name: str) -> nn.Module:
    """Builds a model of `SWIN_ORIGINALS` with random weights, none of which is zero or one."""
    class_name, fields = SWIN_ORIGINALS[name]
    model_class = getattr(t, class_name)
    return perturbed(model_class(model_class.config_class(**{**TINY, **fields})))


def swin_timm_original(name: str) -> nn.Module:
    """Builds a model of `SWIN_TIMM` with random weights, none of which is zero or one."""
    from timm.models import swin_transformer, swin_transformer_v2

    class_name, fields = SWIN_TIMM[name]
    module = swin_transformer_v2 if class_name.endswith("V2") else swin_transformer
    return perturbed(getattr(module, class_name)(**{**TINY_TIMM, **fields}))


@torch.no_grad()
def predict_swin(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Returns logits or last hidden states of a model of transformers, or of ours."""
    outputs = model(images, interpolate_pos_encoding=True)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


@torch.no_grad()
def predict_timm(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images)


def compare_swin(name: str) -> Comparison:
    """Compares a model of `SWIN_ORIGINALS` with what `convert` makes of it."""
    return _compare(name, lambda: swin_original(name), predict_swin)


def compare_swin_timm(name: str) -> Comparison:
    """Compares a model of `SWIN_TIMM` with what `convert` makes of it."""
    return _compare(f"timm {name}", lambda: swin_timm_original(name), predict_timm)


@torch.no_grad()
def _compare(title: str, make: Callable[[], nn.Module], predict: Callable[..., torch.Tensor]) -> Comparison:
    differences = []
    for size in SIZES:
        torch.manual_seed(0)
        model = (
            make()
        )  # a new one for each size, as transformers' Swin remembers windows of the sizes that it saw
        images = torch.randn(2, 3, *size)
        converted, _ = convert(model)
        differences.append(float((predict_swin(converted, images) - predict(model, images)).abs().max()))
    fewer, _ = convert(model, patch_selector="variance", num_selected_windows=2)
    selected = fewer(torch.randn(1, 3, 48, 64)).selected_windows
    selects = [tuple(windows.shape) for windows in selected] == [(1, 2), (1, 1)]
    return Comparison(title, type(model).__name__, differences[0], max(differences[1:]), selects)
