"""Large images, read a region at a time.

| what | read by | a region costs | a thumbnail costs |
|---|---|---|---|
| array, tensor, Pillow image, URL | memory | nothing | the image |
| `.npy` | numpy's memory map | its bytes | one pass |
| TIFF, BigTIFF, OME-TIFF | tifffile, imagecodecs | the tiles it touches | a smaller copy in the file, or one pass |
| whole slides (`.svs`, `.ndpi`, `.mrxs`, ...) | OpenSlide; tifffile where it can | the tiles | a smaller copy |
| zarr, OME-Zarr | zarr | the chunks | a smaller copy, or one pass |
| JPEG, PNG | libvips (pyvips) | the rows since the last region; all above it after a step back up | one pass, of JPEG at up to 1/8 |
| every other format; JPEG, PNG without pyvips | Pillow | the whole image, once | nothing more |

All but the last take memory that does not depend on the image's height, and only that of rows and strips on
its width. `pip install vit_hf[large]` brings every package named here.
"""  # noqa: E501

import os

import numpy as np
import PIL.Image
import torch

from ..model.image_loading import OTHER_READERS, read_image
from .arrays import ArraySource, NpySource, ZarrSource
from .base import MAX_PIXELS, FileSource, ImageSource, import_extra
from .photos import PhotoSource, PillowPhotoSource, PillowSource
from .slides import TIFF_SIGNATURES, SlideSource, is_slide
from .suffixes import SLIDE_SUFFIXES, is_zarr
from .tiff import TiffSource


__all__ = ["ArraySource", "ImageSource", "open_image"]

# First bytes of a file -> its reader.
SIGNATURES: dict[bytes, type[FileSource]] = {
    b"\x93NUMPY": NpySource,
    **dict.fromkeys(TIFF_SIGNATURES, TiffSource),
    b"\xff\xd8\xff": PhotoSource,
    b"\x89PNG\r\n\x1a\n": PhotoSource,
}


def open_image(
    source: ImageSource | str | os.PathLike | PIL.Image.Image | np.ndarray | torch.Tensor,
    max_pixels: int | None = MAX_PIXELS,
) -> ImageSource:
    """Opens an image that is read region by region; use it in a `with` statement.

    Sources of files may be pickled, and used after a fork: each process opens the file for itself.

    Args:
        source: a file or folder (the format is found by content), a URL or base64 text, an image in memory as
            `to_pixels` takes it (floats in 0..1), or an `ImageSource`, which is returned.
        max_pixels: the most pixels that a file may declare to have; None for no limit, neither on images that
            must be decoded whole. For URLs and base64 text, Pillow's limit holds.

    Raises:
        ValueError: if it is no image, a damaged one, or one larger than `max_pixels`; names the file.
        ImportError: if the package is missing that reads it; says which.
    """
    if isinstance(source, ImageSource):
        return source
    if not isinstance(source, str | os.PathLike):
        return ArraySource(source, f"a {type(source).__name__}")
    if not os.path.exists(source):
        name = str(source)
        return ArraySource(read_image(source), repr(name if len(name) <= 200 else f"{name[:200]}..."))
    return _format(os.fspath(source))(source, max_pixels)


def _format(path: str) -> type[FileSource]:
    if os.path.isdir(path):
        if is_zarr(path):
            return ZarrSource
        raise ValueError(f"Cannot open the image {path!r}: it is a directory, and no zarr array or group.")
    with open(path, "rb") as file:
        start = file.read(8)
    reader = next(
        (reader for signature, reader in SIGNATURES.items() if start.startswith(signature)), PillowSource
    )
    if reader is PhotoSource and not _pyvips_is_there():
        return PillowPhotoSource
    if reader is TiffSource and is_slide(path):
        return SlideSource
    return SlideSource if path.lower().endswith(SLIDE_SUFFIXES) else reader


def read_whole(path: str) -> PIL.Image.Image | None:
    """Reads a file of a format unknown to Pillow as an RGB or gray image; returns None for other files.

    Raises:
        PIL.Image.DecompressionBombError: beyond Pillow's limit.
    """
    try:
        reader = _format(path)
        if reader not in (NpySource, TiffSource, SlideSource):
            return None
        with reader(path, None) as source:
            pixels, most = source.height * source.width, PIL.Image.MAX_IMAGE_PIXELS
            if most is not None and pixels > 2 * most:
                raise PIL.Image.DecompressionBombError(
                    f"Image size ({pixels} pixels) exceeds limit of {2 * most} pixels"
                )
            image = source.read(0, 0, source.height, source.width)
    except (ValueError, ImportError):
        return None
    is_gray = (image == image[..., :1]).all()
    picture = PIL.Image.fromarray(np.ascontiguousarray(image[..., 0] if is_gray else image))
    picture.filename = path
    return picture


# Image processors, `predict_files` and training read what `open_image` reads.
if read_whole not in OTHER_READERS:
    OTHER_READERS.append(read_whole)


def _pyvips_is_there() -> bool:
    try:
        import_extra("pyvips", "pyvips[binary]", "")
    except ImportError:
        return False
    return True
