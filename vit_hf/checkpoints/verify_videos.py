"""Small video models of transformers with random weights, and how far `convert` is from them.

What tests check and `scripts/convert.py --verify-all` prints.
"""

from collections.abc import Callable, Iterator

import torch
import transformers as t
from torch import nn

from .convert import convert


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
# Class and fields of transformers. Neither takes other sizes: VideoMAE refuses them, and ViViT resizes its positions as
# if they were of a square image.
VIDEO_ORIGINALS: dict[str, tuple[str, dict]] = {
    "vivit": ("VivitForVideoClassification", VIVIT),
    "vivit-encoder": ("VivitModel", VIVIT),
    "videomae": ("VideoMAEForVideoClassification", VIDEOMAE),
    "videomae-encoder": ("VideoMAEModel", {**VIDEOMAE, "use_mean_pooling": False}),
    "videomae-no-qv-bias": ("VideoMAEForVideoClassification", {**VIDEOMAE, "qv_bias": False}),
}
SHAPE = (2, 6, 3, 24, 32)


def video_original(name: str, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A model of the family with random weights, changed by `change`."""
    class_name, fields = VIDEO_ORIGINALS[name]
    model_class = getattr(t, class_name)
    return change(model_class(model_class.config_class(**fields)))


@torch.no_grad()
def answer(model: nn.Module, videos: torch.Tensor) -> torch.Tensor:
    """Logits, or the last hidden states."""
    outputs = model(videos)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


@torch.no_grad()
def verify_videos(
    change: Callable[[nn.Module], nn.Module],
) -> Iterator[tuple[str, str, float, None, bool]]:
    """Name, class there, largest difference at the native size, None for other sizes, and whether selection works."""
    for name in VIDEO_ORIGINALS:
        torch.manual_seed(0)
        model, videos = video_original(name, change), torch.randn(SHAPE)
        difference = (answer(convert(model)[0], videos) - answer(model, videos)).abs().max()
        fewer, _ = convert(model, patch_selector="motion", num_selected_patches=6)
        selected = fewer(torch.randn(1, 8, 3, 48, 64)).selected_patches
        yield name, type(model).__name__, float(difference), None, selected.shape == (1, 6)
