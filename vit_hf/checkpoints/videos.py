"""Video models of transformers in our terms: ViViT and VideoMAE. See `families.py`."""

from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import AutoVideoProcessor, PretrainedConfig, PreTrainedModel
from transformers.utils import IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, cached_file
from transformers.video_processing_utils import BaseVideoProcessor

from ..model.sizes import to_pair
from .families import POSITIONS, CannotConvert, Family, Weights, linear_head, vit_fields


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
            "With use_mean_pooling=False this classifier reads the first patch alone, which AdaptiveViT may not select; "
            "convert its encoder, model.videomae."
        )
    return head


def videomae_pooled(model: nn.Module) -> Weights:
    """The norm of what the classifier pools."""
    return {f"layernorm.{name}": value for name, value in model.fc_norm.state_dict().items()}


def videomae_finish(weights: Weights, config: PretrainedConfig) -> Weights:
    """Its fixed table of positions, a sinusoid of the raster index from 0, as a learned one of the same values.

    Ours of that name counts from 1, and is computed in float32, where the fast angles of late patches are coarse.
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
    """The video processor beside a checkpoint, or the default of its family in transformers, at the model's size."""
    names = (VIDEO_PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)
    if path and any(cached_file(path, name, _raise_exceptions_for_missing_entries=False) for name in names):
        return AutoVideoProcessor.from_pretrained(path)
    height, width = to_pair(model.config.image_size)
    return getattr(transformers, VIDEO_FAMILIES[model.config.model_type].processor)(
        size={"height": height, "width": width}, do_center_crop=False
    )
