"""`backbone_config` of the configuration: the CNN of a hybrid, and hybrids as transformers 4 described them."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig


# Of transformers' ViTHybridConfig, which version 5 does not have any more: R50+ViT-B/16.
STOCK_BACKBONE = {
    "model_type": "bit",
    "global_padding": "same",
    "layer_type": "bottleneck",
    "depths": [3, 4, 9],
    "out_features": ["stage3"],
    "embedding_dynamic_padding": True,
}


def read_backbone_config(value: dict[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a backbone, given as such or as the dictionary that is in JSON files.

    Raises:
        ValueError: if its `model_type` is that of no backbone of transformers.
    """
    from transformers import MODEL_FOR_BACKBONE_MAPPING  # needs PyTorch

    is_dict = isinstance(value, dict)
    model_type = value.get("model_type") if is_dict else value.model_type
    known = sorted(config_class.model_type for config_class in MODEL_FOR_BACKBONE_MAPPING)
    if model_type not in known:
        raise ValueError(
            f"backbone_config has the model_type {model_type!r}, which is no backbone of transformers. Choose one of "
            f"{known}."
        )
    return CONFIG_MAPPING[model_type].from_dict(value) if is_dict else value


def check_backbone_config(config: PreTrainedConfig) -> None:
    """Checks `config.backbone_config` against the rest.

    Raises:
        ValueError: if it does not fit.
    """
    channels = getattr(config.backbone_config, "num_channels", config.num_channels)
    if channels != config.num_channels:
        raise ValueError(
            f"backbone_config reads num_channels={channels}, and the model num_channels={config.num_channels}: they must "
            "be equal."
        )


def bit_stride(config: PreTrainedConfig) -> int:
    """Pixels for a cell of the last feature map of a BiT."""
    stage = config.stage_names.index(config.out_features[-1])
    return min(4 * 2 ** max(stage - 1, 0), config.output_stride)


def read_stock_hybrid(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Our fields for the `config.json` of a `ViTHybridForImageClassification` of transformers 4.

    Its `patch_size` counts cells of the feature map, ours pixels.

    Raises:
        ValueError: if its patches are of several cells, or its backbone is no BiT.
    """
    if config_dict.get("backbone") is not None:
        raise ValueError(
            f"This hybrid takes its CNN from {config_dict['backbone']!r}; its config.json must describe it, as "
            "backbone_config."
        )
    unused = (
        "backbone",
        "backbone_featmap_shape",
        "backbone_kwargs",
        "use_pretrained_backbone",
        "use_timm_backbone",
    )
    config_dict = {key: value for key, value in config_dict.items() if key not in unused}
    cells = config_dict.get("patch_size", 1)
    if cells not in (1, [1, 1]):
        raise ValueError(
            f"This hybrid makes patches of patch_size={cells} cells of the CNN's map; AdaptiveViT embeds each cell "
            "(patch_size=1)."
        )
    backbone = config_dict.get("backbone_config") or STOCK_BACKBONE
    backbone = read_backbone_config({"model_type": "bit", **backbone})
    if backbone.model_type != "bit":
        raise ValueError(f"The CNN of a stock hybrid is a 'bit', not {backbone.model_type!r}.")
    stride = bit_stride(backbone)
    return {
        **config_dict,
        "backbone_config": backbone.to_dict(),
        "patch_size": stride,
        "encoder_stride": stride,
    }
