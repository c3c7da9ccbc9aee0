"""The CNN of timm's hybrids, a `ResNetV2` as in `vit_base_r50_s16_384`, as a BiT of transformers."""

from typing import Any

from torch import nn
from transformers import BitConfig

from ..model.configuration_adaptive_vit import bit_stride
from .families import CannotConvert


# Parts of the CNN: theirs, ours.
BACKBONE = (
    ("stem.conv.", "bit.embedder.convolution."),
    ("stem.norm.", "bit.embedder.norm."),
    ("stages.", "bit.encoder.stages."),
    (".blocks.", ".layers."),
)


def is_hybrid(model: nn.Module) -> bool:
    return type(model.patch_embed).__name__ == "HybridEmbed"


def hybrid_fields(embed: nn.Module) -> dict[str, Any]:
    """Fields of `AdaptiveViTConfig` for timm's `HybridEmbed`.

    Raises:
        CannotConvert: for a CNN that a BiT of transformers cannot be, or patches of several cells.
    """
    backbone, name = embed.backbone, type(embed.backbone).__name__
    if name != "ResNetV2":
        raise CannotConvert(
            f"Its CNN is of type {name}; of timm's hybrids those with a ResNetV2 can be converted."
        )
    blocks = [block for stage in backbone.stages for block in stage.blocks]
    convolutions = [part for part in backbone.modules() if isinstance(part, nn.Conv2d)]
    norms = [part for part in backbone.modules() if isinstance(part, nn.GroupNorm)]
    downsamples = {type(stage.blocks[0].downsample).__name__ for stage in backbone.stages}
    activations = {type(part.act).__name__ for part in norms} | {
        type(getattr(block, "act3", None)).__name__ for block in blocks
    }
    unknown = {
        f"patches of {embed.patch_size} cells": tuple(embed.patch_size) != (1, 1),
        "no projection": not isinstance(embed.proj, nn.Conv2d),
        f"a stem of {[*dict(backbone.stem.named_children())]}": [*dict(backbone.stem.named_children())]
        != ["conv", "norm", "pool"],
        "pooling in the stem that is not padded to the same size": type(backbone.stem.pool).__name__
        != "MaxPool2dSame",
        "blocks that normalise first (preact=True)": {type(block).__name__ for block in blocks}
        != {"Bottleneck"},
        "convolutions other than StdConv2dSame with eps=1e-8, without groups and dilation": any(
            type(part).__name__ != "StdConv2dSame"
            or part.eps != 1e-8
            or part.groups != 1
            or part.dilation != (1, 1)
            for part in convolutions
        ),
        "norms other than GroupNorm with eps=1e-5": any(part.eps != 1e-5 for part in norms)
        or len({part.num_groups for part in norms}) != 1,
        f"activations {sorted(activations)}": not activations <= {"ReLU", "Identity"},
        f"shortcuts of type {sorted(downsamples)}": downsamples != {"DownsampleConv"},
        "a head": not isinstance(backbone.head.fc, nn.Identity),
    }
    found = [what for what, is_there in unknown.items() if is_there]
    if found:
        raise CannotConvert(f"Its CNN has {', '.join(found)}, which a BiT of transformers has not.")
    config = BitConfig(
        num_channels=backbone.stem.conv.in_channels,
        embedding_size=backbone.stem.conv.out_channels,
        hidden_sizes=[stage.blocks[-1].conv3.out_channels for stage in backbone.stages],
        depths=[len(stage.blocks) for stage in backbone.stages],
        num_groups=norms[0].num_groups,
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
        out_features=[f"stage{len(backbone.stages)}"],
    )
    stride = bit_stride(config)
    return {
        "backbone_config": config,
        "patch_size": stride,
        "encoder_stride": stride,
        "num_channels": config.num_channels,
    }


def backbone_name(name: str) -> str:
    """Our name of a weight of the CNN, without prefixes."""
    for theirs, ours in BACKBONE:
        name = name.replace(theirs, ours)
    return name
