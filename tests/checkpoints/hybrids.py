"""Small hybrids of timm with random weights, the originals that ours are compared with."""

from functools import partial

import torch
from timm.layers import HybridEmbed, StdConv2dSame
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer


SIZES = [(32, 32), (48, 64), (24, 16)]
# Of stride 8.
CNN = {
    "layers": (1, 2),
    "channels": (128, 256),
    "stem_chs": 32,
    "stem_type": "same",
    "preact": False,
    "num_classes": 0,
    "global_pool": "",
    "conv_layer": partial(StdConv2dSame, eps=1e-8),
}


def timm_hybrid(cnn=None, embed=None, **fields) -> VisionTransformer:
    """R+ViT of patches of 8 pixels, at 32 pixels; `cnn` are options of its ResNetV2, `embed` of HybridEmbed."""
    backbone = ResNetV2(**{**CNN, **(cnn or {})})
    model = VisionTransformer(
        **{
            "img_size": 32,
            "patch_size": 1,
            "embed_layer": partial(HybridEmbed, backbone=backbone, **(embed or {})),
            "embed_dim": 32,
            "depth": 3,
            "num_heads": 4,
            "mlp_ratio": 2,
            "num_classes": 5,
            "dynamic_img_size": True,
            **fields,
        }
    ).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model
