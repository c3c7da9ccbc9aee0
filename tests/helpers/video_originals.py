"""Small video models of transformers with random weights, and how far `convert` is from their outputs.

Tests check the differences; `scripts/experiments/conversion_table.py` prints them.
"""

import torch
import transformers as t
from torch import nn

from tests.helpers.originals import Comparison, perturbed
from vit_hf import convert


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": [24, 32],
    "num_frames": 6,
    "num_labels": 5,
    "initializer_range": 0.2,
}
VIVIT = {**TINY, "tubelet_size": [2, 8, 8]}
VIDEOMAE = {**TINY, "tubelet_size": 2, "patch_size": 8}
# Class and fields of transformers. Neither takes other sizes: VideoMAE refuses them, and ViViT resizes its
# positions as if the image were square.
VIDEO_ORIGINALS: dict[str, tuple[str, dict]] = {
    "vivit": ("VivitForVideoClassification", VIVIT),
    "vivit-encoder": ("VivitModel", VIVIT),
    "videomae": ("VideoMAEForVideoClassification", VIDEOMAE),
    "videomae-encoder": ("VideoMAEModel", {**VIDEOMAE, "use_mean_pooling": False}),
    "videomae-no-qv-bias": ("VideoMAEForVideoClassification", {**VIDEOMAE, "qv_bias": False}),
}
SHAPE = (2, 6, 3, 24, 32)


def video_original(name: str) -> nn.Module:
    """Builds a model of `VIDEO_ORIGINALS` with random weights, none of which is zero or one."""
    class_name, fields = VIDEO_ORIGINALS[name]
    model_class = getattr(t, class_name)
    return perturbed(model_class(model_class.config_class(**fields)))


@torch.no_grad()
def predict_video(model: nn.Module, videos: torch.Tensor) -> torch.Tensor:
    """Returns logits, or the last hidden states."""
    outputs = model(videos)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


@torch.no_grad()
def compare_video(name: str) -> Comparison:
    """Compares a model of `VIDEO_ORIGINALS` with what `convert` makes of it, at the model's own size."""
    torch.manual_seed(0)
    model, videos = video_original(name), torch.randn(SHAPE)
    difference = (predict_video(convert(model)[0], videos) - predict_video(model, videos)).abs().max()
    fewer, _ = convert(model, patch_selector="motion", num_selected_patches=6)
    selected = fewer(torch.randn(1, 8, 3, 48, 64)).selected_patches
    return Comparison(name, type(model).__name__, float(difference), None, selected.shape == (1, 6))
