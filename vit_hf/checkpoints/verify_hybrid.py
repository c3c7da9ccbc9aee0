"""A small hybrid of timm with random weights, what tests of hybrids and `scripts/convert.py --verify-all` compare with.

timm need not be installed for anything else in this package.
"""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from .convert import convert


# The first is native.
SIZES = [(32, 32), (48, 64), (24, 16)]


def timm_hybrid(cnn: dict[str, Any] | None = None, **fields: Any) -> nn.Module:
    """A ResNet of stride 8 before a ViT.

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
    model = VisionTransformer(**options | fields).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model


@torch.no_grad()
def verify_hybrid() -> Iterator[tuple[str, str, float, float, bool]]:
    """The fields of a `Verdict`; nothing if timm is not installed."""
    if find_spec("timm") is None:
        return
    torch.manual_seed(0)
    model = timm_hybrid()
    converted, _ = convert(model)
    differences = []
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        differences.append(float((converted(images).logits - model(images)).abs().max()))
    fewer, _ = convert(model, patch_selector="variance", num_selected_patches=6)
    selected = fewer(torch.randn(1, 3, 48, 64)).selected_patches
    yield (
        "hybrid",
        "VisionTransformer with HybridEmbed (timm)",
        differences[0],
        max(differences[1:]),
        selected.shape == (1, 6),
    )
