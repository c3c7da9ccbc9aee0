"""Pictures, small checkpoints and the script for the tests of the page."""

from pathlib import Path

import numpy as np
import PIL.Image

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.app.explorer import PatchExplorer


def photo(height: int, width: int) -> PIL.Image.Image:
    """Noise on a ramp, so that patches differ."""
    noise = np.random.default_rng(0).normal(0, 30, (height, width, 3))
    ramp = np.linspace(40, 200, width)[None, :, None]
    return PIL.Image.fromarray((noise + ramp).clip(0, 255).astype(np.uint8))


def make_explorer(do_resize: bool = False, **fields) -> PatchExplorer:
    """A small model behind a page; `fields` of its configuration."""
    config = tiny_config(**fields)
    options = {"do_resize": do_resize, "size": {"height": 32, "width": 32}, "patch_size": config.patch_size}
    if config.num_channels == 1:
        options |= {"do_convert_rgb": False, "image_mean": [0.5], "image_std": [0.5]}
    return PatchExplorer(AdaptiveViTForImageClassification(config), AdaptiveViTImageProcessor(**options))


def save_checkpoint(folder: Path, **fields) -> Path:
    explorer = make_explorer(**fields)
    explorer.model.save_pretrained(folder)
    explorer.image_processor.save_pretrained(folder)
    return folder
