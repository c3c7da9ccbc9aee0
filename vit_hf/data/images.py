"""Image decoding with errors that name the file."""

import glob
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from transformers.image_processing_utils import BaseImageProcessor

from ..model.image_loading import read_image, to_pixels
from ..model.image_loading import upright_size as size_when_upright
from ..model.image_processing_adaptive_vit import ImagePreparation
from ..readers.suffixes import is_image, is_zarr
from .image_folders import REGIONS_ONLY, TOOL_NAMES, UNKNOWN, LeftOut, list_files, show


StoredImage = str | PathLike | dict[str, Any] | PIL.Image.Image


def decode_image(source: StoredImage) -> PIL.Image.Image:
    """Decodes an image completely.

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
    """Prepares and stacks the inputs of a model.

    Args:
        image_processor: the model's.
        images: to prepare.
        options: further arguments of the image processor.

    Raises:
        ValueError: as the image processor does, for instance for sizes that do not stack.
    """
    if not isinstance(image_processor, ImagePreparation):
        # Processors of transformers fail on gray and transparent images.
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
    if not is_timm:
        return pixels
    # Imported here: the package works without torchvision, which timm brings.
    from torchvision.transforms.functional import to_pil_image

    # timm's transformations resize Pillow images otherwise than tensors, and are what a checkpoint was
    # measured with.
    return to_pil_image(pixels)


def is_timm_processor(image_processor: BaseImageProcessor) -> bool:
    """Checks for a wrapper of timm's transforms (`TimmWrapperImageProcessor`), which lacks transformers'
    options."""
    return hasattr(image_processor, "data_config") and hasattr(image_processor, "val_transforms")


def check_header(path: str | PathLike) -> None:
    """Checks that a file begins like an image; quick, but blind to damage further on.

    Raises:
        ValueError: naming the file, if it does not.
    """
    try:
        PIL.Image.open(path).close()
    except Exception:
        read_image(path)  # raises a better error


def upright_size(source: StoredImage, place: str) -> tuple[int, int]:
    """Width and height of an image after its EXIF orientation is applied; reads only the header.

    Raises:
        ValueError: naming the file, or `place` if it is embedded, if it is damaged.
    """
    if isinstance(source, PIL.Image.Image):
        return size_when_upright(source)
    if not isinstance(source, dict):
        source = {"path": source, "bytes": None}
    file = source["path"] if source["bytes"] is None else io.BytesIO(source["bytes"])
    try:
        with PIL.Image.open(file) as image:
            return size_when_upright(image)
    except Exception:
        # Some files can be read whose header Pillow does not take; for others this raises a clear error.
        return size_when_upright(decode_image(source | {"path": source["path"] or place}))


def find_images(
    patterns: Iterable[str],
    left_out: LeftOut | None = None,
    accepts: Callable[[str | PathLike], bool] = is_image,
) -> list[str]:
    """Expands files, folders (searched recursively, see `list_files`) and glob patterns, in order.

    Args:
        patterns: files, folders and glob patterns.
        left_out: collects the other files in folders.
        accepts: selects the files in folders; by default all that `open_image` reads.

    Returns:
        Files, each once. A file that was named is returned regardless of its ending and existence.

    Raises:
        FileNotFoundError: for a pattern that matches nothing, and for a folder without images.
    """
    left_out = LeftOut() if left_out is None else left_out
    files: dict[str, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir() and not is_zarr(path):
            here = LeftOut(path)
            found = sorted(str(file) for file in find_in_folder(path, here, accepts))
            if not found:
                notes = "".join(f" ({note})" for note in here.notes())
                raise FileNotFoundError(
                    f"no image in the folder {show(path)}, nor in the folders below{notes}"
                )
            left_out.update(here)
        else:
            found = expand_pattern(pattern)
        files.update(dict.fromkeys(found))
    return list(files)


def find_in_folder(
    folder: Path, left_out: LeftOut, accepts: Callable[[str | PathLike], bool] = is_image
) -> Iterator[Path]:
    """Yields the files that `accepts` accepts, and zarr folders, in a folder and below; adds all others to
    `left_out`."""
    for file in list_files(folder, left_out):
        if accepts(file) or (accepts is is_image and file.is_dir()):
            yield file
        else:
            left_out.add(REGIONS_ONLY if is_image(file) or file.is_dir() else UNKNOWN, file)


def expand_pattern(pattern: str) -> list[str]:
    """Expands a pattern to sorted files; returns existing paths and plain names unchanged.

    Folders that exist are taken literally, whatever characters their names have.

    Raises:
        FileNotFoundError: for a pattern that matches nothing.
    """
    path = os.path.expanduser(pattern)
    if not glob.has_magic(path) or os.path.lexists(path):
        return [path]
    parts = Path(path).parts
    number = max(n for n in range(len(parts) + 1) if os.path.exists(os.path.join(*parts[:n], "")) or n == 0)
    literal = os.path.join("", *(glob.escape(part) for part in parts[:number]), *parts[number:])
    found = sorted(
        file
        for file in glob.glob(literal, recursive=True)
        if (os.path.isfile(file) or is_zarr(file))
        and not TOOL_NAMES & {part.lower() for part in Path(file).parts[number:]}
    )
    if not found:
        raise FileNotFoundError(f"no file matches {pattern}")
    return found


def unique_names(sources: Iterable[Any]) -> list[str]:
    """Names images after their files, numbered where two coincide."""
    names: list[str] = []
    for index, source in enumerate(sources):
        path = source if isinstance(source, str | os.PathLike) else getattr(source, "filename", "")
        stem = Path(str(path).partition("?")[0]).stem if len(str(path)) < 1000 else ""
        stem = name = re.sub(r"[^\w.-]+", "_", stem)[:80] or f"image_{index}"
        number = 2
        while name in names:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names
