"""Reads `ViTHybrid` checkpoints of transformers 4, such as google/vit-hybrid-base-bit-384; version 5 dropped
the class."""

from os import PathLike
from typing import Any

from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.image_processing_adaptive_vit import AdaptiveViTImageProcessor
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification, AdaptiveViTModel
from ..model.pretrained import AdaptiveViTPreTrainedModel
from ..model.sizes import to_pair
from .families import CannotConvert
from .loading import is_image_processor_saved


def is_stock_hybrid(path: str | PathLike) -> bool:
    """Raises: OSError if there is no configuration."""
    return PreTrainedConfig.get_config_dict(path)[0].get("model_type") == "vit-hybrid"


def load_stock_hybrid(
    path: str | PathLike, **fields: Any
) -> tuple[AdaptiveViTPreTrainedModel, BaseImageProcessor]:
    """Loads the checkpoint as an AdaptiveViT of the same dtype, with its image processor or else Google's
    default.

    Raises:
        CannotConvert: if weights are missing or too many.
        ValueError: for patches of several cells, or a CNN that is no BiT.
    """
    classes = PreTrainedConfig.get_config_dict(path)[0].get("architectures") or [""]
    is_classifier = classes[0] == "ViTHybridForImageClassification"
    model_class = AdaptiveViTForImageClassification if is_classifier else AdaptiveViTModel
    # use_safetensors=None: the tensors of a pickle, too, as of every checkpoint that is converted.
    model, report = model_class.from_pretrained(
        path, output_loading_info=True, use_safetensors=None, **fields
    )
    prefix = "vit." if is_classifier else ""
    added = tuple(f"{prefix}{part}" for part in ("selector.", "reducers.", "embeddings.scale_embedding"))
    missing = [name for name in report["missing_keys"] if not name.startswith(added)]
    if missing or report["unexpected_keys"]:
        raise CannotConvert(
            f"{path} has weights unknown to AdaptiveViT, {sorted(report['unexpected_keys'])[:5]}, or lacks "
            f"some, {sorted(missing)[:5]}."
        )
    return model.eval(), _load_processor(path, model.config)


def _load_processor(path: str | PathLike, config: AdaptiveViTConfig) -> BaseImageProcessor:
    if is_image_processor_saved(str(path)):
        return AdaptiveViTImageProcessor.from_pretrained(path, patch_size=config.patch_size)
    height, width = to_pair(config.image_size)
    return AdaptiveViTImageProcessor(
        size={"shortest_edge": min(height, width)},
        do_center_crop=True,
        crop_size={"height": height, "width": width},
        resample=3,
        image_mean=[0.5] * config.num_channels,
        image_std=[0.5] * config.num_channels,
        patch_size=config.patch_size,
    )
