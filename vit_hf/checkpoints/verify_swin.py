"""Small Swins of transformers and timm with random weights, and how far `convert` is from them.

What tests check and `scripts/convert.py --verify-all` prints.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
import transformers as t
from torch import nn

from .convert import convert


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
# The first is native; of no other are both sides of a grid whole windows.
SIZES = [(32, 32), (48, 64), (40, 28)]


def swin_original(name: str) -> nn.Module:
    """A model of transformers, none of whose weights is zero or one."""
    class_name, fields = SWIN_ORIGINALS[name]
    model_class = getattr(t, class_name)
    return randomised(model_class(model_class.config_class(**{**TINY, **fields})))


def swin_timm_original(name: str) -> nn.Module:
    """One of `SWIN_TIMM`, in the same way. Raises: ImportError without timm."""
    from timm.models import swin_transformer, swin_transformer_v2

    class_name, fields = SWIN_TIMM[name]
    module = swin_transformer_v2 if class_name.endswith("V2") else swin_transformer
    return randomised(getattr(module, class_name)(**{**TINY_TIMM, **fields}))


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    for value in model.parameters():
        value.add_(0.1 * torch.randn_like(value))
    return model.eval()


@torch.no_grad()
def swin_answer(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits or last hidden states of a model of transformers."""
    outputs = model(images, interpolate_pos_encoding=True)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


@torch.no_grad()
def timm_answer(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images)


def verify_swin() -> Iterator[tuple[str, str, float, float, bool]]:
    """The fields of a `Verdict`; those of timm if it is installed."""
    for name in SWIN_ORIGINALS:
        yield _verdict(name, swin_original, name, swin_answer)
    if find_spec("timm") is None:
        return
    for name in SWIN_TIMM:
        yield _verdict(f"timm {name}", swin_timm_original, name, timm_answer)


@torch.no_grad()
def _verdict(title: str, make: Callable, name: str, answer: Callable) -> tuple[str, str, float, float, bool]:
    differences = []
    for size in SIZES:
        torch.manual_seed(0)
        model = make(name)  # anew, as that of transformers remembers windows of the sizes that it saw
        images = torch.randn(2, 3, *size)
        converted, _ = convert(model)
        differences.append(float((swin_answer(converted, images) - answer(model, images)).abs().max()))
    fewer, _ = convert(model, patch_selector="variance", num_selected_windows=2)
    selected = fewer(torch.randn(1, 3, 48, 64)).selected_windows
    works = [tuple(windows.shape) for windows in selected] == [(1, 2), (1, 1)]
    return title, type(model).__name__, differences[0], max(differences[1:]), works
