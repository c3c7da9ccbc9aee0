"""Reading images so that a broken one is named."""

import glob
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torchvision.transforms.functional import to_pil_image
from transformers.image_processing_utils import BaseImageProcessor

from ..model.image_loading import read_image, to_pixels
from ..model.image_preparation import ImagePreparation


ImageSource = str | PathLike | dict[str, Any] | PIL.Image.Image

# What Pillow may read, by the end of a file's name, in lower case with the dot.
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, name in PIL.Image.registered_extensions().items() if name in PIL.Image.OPEN
)


def decode_image(source: ImageSource) -> PIL.Image.Image:
    """Decode an image completely.

    Args:
        source: a file, what an undecoded image column of `datasets` holds (`path` and `bytes`), or an image.

    Raises:
        ValueError: naming the file, if it is missing, empty or damaged.
    """
    if isinstance(source, PIL.Image.Image):
        return source
    if not isinstance(source, dict):
        return read_image(source)
    if source["bytes"] is None:
        return read_image(source["path"])
    name = f"embedded {source['path'] or ''}".strip()
    return read_image(source["bytes"], name)


def prepare_images(
    image_processor: BaseImageProcessor, images: list[PIL.Image.Image | torch.Tensor], **options: Any
) -> dict[str, torch.Tensor]:
    """The inputs of a model, stacked.

    Args:
        image_processor: of the model.
        images: to prepare.
        options: others of a call of the image processor.

    Raises:
        ValueError: as the image processor does, for instance for sizes that do not stack.
    """
    if not isinstance(image_processor, ImagePreparation):
        # Those of transformers fail on gray and transparent images.
        images = [_pixels_for(image_processor, image, place) for place, image in enumerate(images)]
    return dict(image_processor(images, return_tensors="pt", **options))


def _pixels_for(
    image_processor: BaseImageProcessor, image: PIL.Image.Image | torch.Tensor, place: int
) -> PIL.Image.Image | torch.Tensor:
    is_timm = is_timm_processor(image_processor)
    if is_timm:
        convert_rgb = image_processor.data_config["input_size"][0] == 3
    else:
        convert_rgb = len(image_processor.image_mean) == 3
    try:
        pixels = to_pixels(image, convert_rgb)
    except ValueError as error:
        file = getattr(image, "filename", "")
        raise ValueError(
            f"Cannot use image {place} of the batch{f' ({file})' if file else ''}: {error}"
        ) from error
    # timm's transformations resize Pillow images otherwise than tensors, and are what a checkpoint was measured with.
    return to_pil_image(pixels) if is_timm else pixels


def is_timm_processor(image_processor: BaseImageProcessor) -> bool:
    """Whether it wraps timm's transformations (`TimmWrapperImageProcessor`), which have no options of transformers'."""
    return hasattr(image_processor, "data_config") and hasattr(image_processor, "val_transforms")


def check_header(path: str | PathLike) -> None:
    """Look whether a file begins as an image does; quick, but blind to damage further on.

    Raises:
        ValueError: naming the file, if it does not.
    """
    try:
        PIL.Image.open(path).close()
    except Exception:
        read_image(path)  # says it better


def find_images(patterns: Iterable[str]) -> list[str]:
    """Expand files, folders (searched recursively, by the files' endings) and glob patterns, in order.

    Returns:
        Files, each once. A file that was named is returned whatever its ending, and whether it exists or not.

    Raises:
        FileNotFoundError: for a pattern that matches nothing, and for a folder without images.
    """
    files: dict[str, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            found = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise FileNotFoundError(f"no image in the folder {path}, nor in the folders below")
        elif glob.has_magic(pattern) and not path.exists():
            found = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
            if not found:
                raise FileNotFoundError(f"no file matches {pattern}")
        else:
            found = [str(path)]
        files.update(dict.fromkeys(found))
    return list(files)
