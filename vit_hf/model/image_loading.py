"""Pictures as people have them (files, Pillow images, arrays of any kind) to the pixels they show.

transformers reads 16-bit images by clipping them to white, leaves Pillow images lying on the side their
camera lay on, and fails on a damaged file without saying which. Here every picture becomes one `(C, H, W)`
tensor or an error that names it. Both backends start from this tensor, so they see the same pixels.
"""

import base64
import math
import os
import re
import struct
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO, RawIOBase
from itertools import accumulate
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageFile
import torch
from PIL import TiffImagePlugin
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format
from transformers.image_utils import load_image as load_url
from transformers.utils import logging


logger = logging.get_logger(__name__)

# The EXIF tag that says how the camera was held; 2 to 8 need turning or mirroring.
ORIENTATION_TAG = 0x0112
TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Ancillary chunks about pixels, not metadata.
PNG_PIXEL_CHUNKS = (b"tRNS", b"bKGD", b"hIST", b"acTL", b"fcTL", b"fdAT")
# An APP0 segment that declares JFIF 1.1 and no density.
JFIF = b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"


# Readers of files that Pillow cannot read or would misread: functions of a path that return an RGB image, or
# None for a file that is not theirs. Empty unless the package is there (`vit_hf.readers` adds TIFF of any
# kind).
OTHER_READERS: list[Callable[[str], PIL.Image.Image | None]] = []

# Pillow shows integers of these formats in mode I, scaled to 16 bits.
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
# Tags of TIFF 6.0.
BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, DESCRIPTION, OFFSETS, SAMPLES_PER_PIXEL = (
    258,
    259,
    262,
    270,
    273,
    277,
)
PLANAR, TILE_OFFSETS, EXTRA_SAMPLES, SAMPLE_FORMAT = 284, 324, 338, 339
SIGNED = 2


def read_image(source: str | os.PathLike | bytes, name: str | None = None) -> PIL.Image.Image:
    """Reads an image from a path, a URL, a data URL, base64 text or the bytes of a file, completely.

    URLs go through transformers' loader, which returns RGB and drops transparency. Damaged metadata (EXIF,
    ICC profiles, XMP, text) is left out.

    Args:
        name: replaces `source` in errors.

    Raises:
        ValueError: if there is no such file, it is a directory, empty, damaged or no image, or has more
            pixels than Pillow's limit; names `source`.
    """
    if name is None:
        name = "embedded image" if isinstance(source, bytes) else repr(str(source))
    name = name if len(name) <= 200 else f"{name[:200]}..."
    try:
        return _read_image(source, name)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(_too_large(name, error)) from error
    except UnsupportedImageError as error:
        raise ValueError(f"Cannot read the image {name}: {error}.") from error
    # Decoders meet damaged files with whatever error they trip over, SyntaxError and struct.error included.
    except Exception as error:
        raise ValueError(
            f"Cannot read the image {name}: {str(error) or type(error).__name__}. It must be an "
            "undamaged image "
            "file that Pillow knows, or a URL of one: replace it, or leave it out."
        ) from error


def _read_image(source: str | os.PathLike | bytes, name: str) -> PIL.Image.Image:
    try:
        return _load(_open(source), name)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning, MemoryError):
        raise
    except Exception as error:
        content = source
        if not isinstance(source, bytes):
            if not os.path.isfile(source):
                raise
            image = _read_elsewhere(os.fspath(source))
            if image is not None:
                return image
            with open(source, "rb") as file:
                content = file.read()
        spans = pixel_spans(BytesIO(content))
        if spans is None:
            raise _explained(content, error) from error
        # Metadata may be all that is wrong. If not, the first error is about the file as it is.
        try:
            image = _load(PIL.Image.open(SpanFile(BytesIO(content), spans)), name)
        except Exception:
            raise error from None
        image.filename = "" if isinstance(source, bytes) else os.fspath(source)
        return image


def _read_elsewhere(path: str) -> PIL.Image.Image | None:
    return next((image for read in OTHER_READERS if (image := read(path)) is not None), None)


def _load(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    try:
        image = as_stored(image, name)
        image.load()
        return image
    except Exception:
        image.close()
        raise


def _open(source: str | os.PathLike | bytes) -> PIL.Image.Image:
    if isinstance(source, bytes):
        return PIL.Image.open(BytesIO(source))
    if str(source).startswith(("http://", "https://")):
        return load_url(str(source))
    if os.path.isdir(source):
        raise ValueError("it is a directory")
    if os.path.isfile(source):
        if os.path.getsize(source) == 0:
            raise ValueError("the file is empty (0 bytes)")
        return PIL.Image.open(source)
    try:
        content = base64.b64decode("".join(str(source).split("base64,")[-1].split()), validate=True)
        return PIL.Image.open(BytesIO(content))
    # A mistyped path may happen to be base64 text, so what decoding says about it would mislead.
    except (ValueError, PIL.UnidentifiedImageError):
        raise ValueError("there is no such file, and it is no URL or base64 text of an image") from None


def _too_large(name: str, error: Exception) -> str:
    return (
        f"Cannot read the image {name} as a whole: {str(error).split(', could be')[0]}. Nothing "
        "says that it is "
        "damaged: it is larger than what Pillow decodes unasked. Read it in parts "
        "(vit_hf.predict_tiled, scripts/"
        "vit-hf predict --tile 224, vit_hf.predict_streaming, vit_hf.open_image); or, if the file is "
        "to be trusted, "
        "raise the limit before images are read (PIL.Image.MAX_IMAGE_PIXELS = None for no "
        "limit), or save it smaller."
    )


def _explained(content: bytes, error: Exception) -> Exception:
    """The error, or one that says what kind of TIFF it is that Pillow does not identify."""
    if not isinstance(error, PIL.UnidentifiedImageError) or not content.startswith(TIFF_SIGNATURES):
        return error
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(content[:8] if content[2] != 43 else content[:16])
        file = BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        bands, bits = tags.get(SAMPLES_PER_PIXEL, 1), tags.get(BITS_PER_SAMPLE, (1,))
        photometric = tags.get(PHOTOMETRIC)
        kind = {1: "int", 2: "signed", 3: "float"}.get(tags.get(SAMPLE_FORMAT, (1,))[0], "int")
    # It may be damaged as well.
    except Exception:
        return error
    return unknown_bands(bands, f"{bits[0]}-bit {kind}", photometric) if bands > 1 else error


class UnsupportedImageError(ValueError):
    """An undamaged image whose pixels cannot be shown; says what to do."""


def unknown_bands(bands: int, kind: str, photometric: int | None) -> UnsupportedImageError:
    """The error of a TIFF whose samples have no colors, or none that can be read."""
    return UnsupportedImageError(
        f"it has {bands} bands of {kind} with photometric interpretation {photometric}, and "
        "nothing says which of them "
        "are colors. Save three as RGB (gdal_translate -b 1 -b 2 -b 3 -co PHOTOMETRIC=RGB) or "
        "one as gray; or give "
        f"all as an array to an image processor with do_convert_rgb=False and {bands} values of "
        "image_mean and "
        f"image_std, for a model with num_channels={bands}"
    )


def pixel_spans(file: BinaryIO) -> list[tuple[int, int] | bytes] | None:
    """The parts of a JPEG, PNG or WebP file that make its pixels, without metadata, for `SpanFile`.

    Returns:
        (start, stop) of bytes, or bytes that replace what is there; None for other formats, and for a
        structure that cannot be followed.
    """
    file.seek(0)
    start = file.read(12)
    file.seek(0)
    size = file.seek(0, os.SEEK_END)
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg_spans(file, size)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_spans(file, size)
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return _webp_spans(file, size)
    return None


def _jpeg_spans(file: BinaryIO, size: int) -> list[tuple[int, int] | bytes] | None:
    spans: list[tuple[int, int] | bytes] = [(0, 2)]
    place = 2
    while True:
        file.seek(place)
        head = file.read(4)
        # 0xFF may be repeated before a marker.
        while head[:2] == b"\xff\xff":
            place += 1
            head = head[1:] + file.read(1)
        if len(head) < 4 or head[0] != 0xFF:
            return None
        marker, (length,) = head[1], struct.unpack(">H", head[2:])
        if length < 2:
            return None
        if marker == 0xDA:  # start of scan
            return [*spans, (place, size)]
        if marker == 0xE0:
            # Its version and density are metadata; that it is there says that colors are YCbCr.
            spans.append(JFIF)
        elif marker == 0xEE or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            spans.append((place, place + 2 + length))
        place += 2 + length


def _png_spans(file: BinaryIO, size: int) -> list[tuple[int, int] | bytes] | None:
    spans, place = [(0, 8)], 8
    while place + 12 <= size:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        stop = place + 12 + length
        # Critical chunks begin with a capital.
        if kind[:1].isupper() or kind == b"tRNS":
            if spans[-1][1] == place:
                spans[-1] = (spans[-1][0], min(stop, size))
            else:
                spans.append((place, min(stop, size)))
        if kind == b"IEND":
            return spans
        place = stop
    # What is missing at its end is for the decoder to say.
    return spans


def _webp_spans(file: BinaryIO, size: int) -> list[tuple[int, int] | bytes] | None:
    spans, place = [], 12
    while place + 8 <= size:
        file.seek(place)
        kind, length = struct.unpack("<4sI", file.read(8))
        stop = place + 8 + length + length % 2
        if kind == b"VP8X":
            header = bytearray(file.read(length))
            if len(header) != 10:
                return None
            header[0] &= 0b00010010  # alpha and animation; not ICC, EXIF and XMP
            spans.append(struct.pack("<4sI", kind, length) + bytes(header))
        elif kind not in (b"ICCP", b"EXIF", b"XMP "):
            spans.append((place, min(stop, size)))
        place = stop
    total = 4 + sum(len(span) if isinstance(span, bytes) else span[1] - span[0] for span in spans)
    return [struct.pack("<4sI4s", b"RIFF", total, b"WEBP"), *spans]


class SpanFile(RawIOBase):
    """Parts of a file as a file."""

    def __init__(self, file: BinaryIO, spans: list[tuple[int, int] | bytes]):
        self.file, self.spans = file, spans
        lengths = [len(span) if isinstance(span, bytes) else span[1] - span[0] for span in spans]
        self.starts = list(accumulate(lengths, initial=0))
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.starts[-1]}[whence]
        self.place = max(0, base + offset)
        return self.place

    def read(self, size: int = -1) -> bytes:
        stop = self.starts[-1] if size is None or size < 0 else min(self.starts[-1], self.place + size)
        parts = []
        while self.place < stop:
            index = bisect_right(self.starts, self.place) - 1
            within = self.place - self.starts[index]
            length = min(stop, self.starts[index + 1]) - self.place
            span = self.spans[index]
            if isinstance(span, bytes):
                part = span[within : within + length]
            else:
                self.file.seek(span[0] + within)
                part = self.file.read(length)
            if not part:
                break
            parts.append(part)
            self.place += len(part)
        return b"".join(parts)

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def flatten_images(images: Any) -> list[Any]:
    """All images of nested lists and `(B, ...)` arrays, in order."""
    if isinstance(images, list | tuple):
        return [image for item in images for image in flatten_images(item)]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return [images]


def to_pixels(
    image: PIL.Image.Image | np.ndarray | torch.Tensor,
    do_convert_rgb: bool,
    input_data_format: str | ChannelDimension | None = None,
) -> torch.Tensor:
    """The pixels of one image as `(C, H, W)`: uint8 in 0..255, or float32 unchanged if it was an array of
    floats.

    16-bit values (Pillow's I;16, uint16 arrays) are divided by 257, so that white stays white; wider and
    signed integers (Pillow's I) must lie in 0..255, as a scale cannot be guessed; floats in files (Pillow's F
    of a TIFF) in 0..1. Pillow images are turned upright as their EXIF orientation says and their palettes are
    looked up.

    Args:
        image: a Pillow image of any mode; or an array or tensor, `(H, W)`, `(C, H, W)` or `(H, W, C)`, of
            bools, integers in 0..255, uint16, or floats.
        do_convert_rgb: makes gray, palette, CMYK and other images RGB and puts transparent ones on white. If
            False, the image keeps its channels.
        input_data_format: where the channels of an array are; None finds out from its shape.

    Raises:
        ValueError: if the image has no pixels, a shape or dtype without a meaning, or NaN or infinite values.
    """
    if isinstance(image, PIL.Image.Image):
        if 0 in image.size:
            raise ValueError(f"it has no pixels, its size is {image.width}x{image.height}")
        array = np.array(as_picture(image, do_convert_rgb))
        pixels = torch.from_numpy(array)
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    if 0 in image.shape:
        raise ValueError(f"it has no pixels, its shape is {tuple(image.shape)}")
    pixels = _plain_values(_channels_first(_to_tensor(image), input_data_format))
    return _array_to_rgb(pixels) if do_convert_rgb else pixels


def as_picture(image: PIL.Image.Image, do_convert_rgb: bool = False) -> PIL.Image.Image:
    """The image upright, with 8-bit channels that mean brightness; in RGB on white if `do_convert_rgb`.

    Raises:
        ValueError: if it is damaged, or has values without a meaning.
    """
    path = getattr(image, "filename", "")
    try:
        return _unpack(upright(as_stored(image, path or "image")), do_convert_rgb)
    except MemoryError:
        raise
    # An image that is decoded only now may turn out to be damaged, or of a kind that Pillow cannot show.
    except Exception as error:
        is_file = isinstance(image, PIL.ImageFile.ImageFile) and path and os.path.isfile(path)
        # Not another frame of it.
        if is_file and image.tell() == 0:
            with suppress(ValueError):
                return _unpack(upright(read_image(path)), do_convert_rgb)
        if isinstance(error, ValueError):
            raise
        raise ValueError(str(error) or type(error).__name__) from error


def orientation_of(image: PIL.Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where the metadata is missing, damaged or says anything
    else."""
    # Pillow parses EXIF and XMP only here, and raises SyntaxError, struct.error, TypeError, ... on damaged
    # ones.
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def orientation_in(file: BinaryIO) -> int:
    """The orientation that a JPEG or PNG file declares, as `orientation_of` finds it; decodes nothing."""
    file.seek(0)
    try:
        if file.read(8) == b"\x89PNG\r\n\x1a\n":
            # Pillow decodes a PNG for that, as EXIF may stand behind the pixels: give it the metadata around
            # one pixel.
            file = SpanFile(file, _one_pixel_png(file))
        file.seek(0)
        with PIL.Image.open(file) as image:
            return orientation_of(image)
    # Whoever reads the pixels then does so without metadata.
    except Exception:
        return 1


def _one_pixel_png(file: BinaryIO) -> list[tuple[int, int] | bytes]:
    pixel = BytesIO()
    PIL.Image.new("L", (1, 1)).save(pixel, "PNG")
    content, size, place = pixel.getvalue(), file.seek(0, os.SEEK_END), 8
    data = content.index(b"IDAT") - 4
    spans: list[tuple[int, int] | bytes] = [content[:data]]
    while place + 12 <= size:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"IDAT" and data:
            spans.append(content[data:-12])
            data = 0
        elif kind[:1].islower() and kind not in PNG_PIXEL_CHUNKS:
            spans.append((place, min(place + 12 + length, size)))
        place += 12 + length
    return [*spans, content[data or -12 :]]


def upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    """(width, height) that an image has once it is upright, without decoding it."""
    width, height = image.size
    # Pillow says of a TIFF how large it will be.
    is_swapped = orientation_of(image) >= 5 and not hasattr(image, "tag_v2")
    return (height, width) if is_swapped else (width, height)


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turns the image as its EXIF orientation says; returns the image itself if there is nothing to do."""
    # Pillow turns a TIFF when it decodes it, and then no longer says that it lay.
    image.load()
    turn = TURNS.get(orientation_of(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    # Otherwise whoever asks the copy would turn it again.
    for key in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):
        turned.info.pop(key, None)
    turned.getexif().pop(ORIENTATION_TAG, None)
    turned.filename = getattr(image, "filename", "")
    return turned


def as_stored(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """The image with the values that its file has, where Pillow shows others; most come back unchanged.

    Raises:
        ValueError: for a TIFF of which Pillow sees a part only, or wrong values that cannot be mended.
    """
    if image.format == "PNG" and getattr(image, "tile", None) and "transparency" in image.info:
        _scale_transparency(image, str(image.tile[0][3]))
    if image.mode == "I" and image.format in SIXTEEN_BIT_FORMATS:
        return _with_values(np.asarray(image).clip(0, 65535).astype(np.uint16), image)
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return image
    _check_whole(tags, image, name)
    file, image.filename = image.filename, ""
    # By its name Pillow 12 maps the file into memory, with width for height where the image lies on its side.
    image.load()
    image.filename = file
    bits, is_white_zero = tags.get(BITS_PER_SAMPLE, (1,))[0], tags.get(PHOTOMETRIC) == 0
    if image.mode == "L" and tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED:
        # Numbers below 0 look like 128 to 255.
        return _with_values(np.asarray(image).view(np.int8).astype(np.int32), image)
    if image.mode.startswith("I;16") and (bits < 16 or is_white_zero):
        top = 2**bits - 1
        values = np.asarray(image).astype(np.uint32)
        values = top - values if is_white_zero else values
        return _with_values(((values * 65535 + top // 2) // top).astype(np.uint16), image)
    if image.mode == "F" and is_white_zero:
        return _with_values(1 - np.asarray(image), image)
    if image.mode == "I" and int(np.asarray(image).min()) < 0 and tags.get(SAMPLE_FORMAT, (1,))[0] != SIGNED:
        return _with_values(np.asarray(image).astype(np.int32), image)
    return image


def _scale_transparency(image: PIL.Image.Image, stored: str) -> None:
    """Gives the transparent value of a PNG, which has the bits of the file, as many as Pillow's pixels have.

    Args:
        image: not yet decoded; it is decoded here, so that this happens once.
        stored: Pillow's name of how samples are stored.
    """
    value = image.info["transparency"]
    if stored in ("L;2", "L;4"):
        image.info["transparency"] = value * (85 if stored == "L;2" else 17)
    elif stored.startswith("RGB;16") and isinstance(value, tuple):
        image.info["transparency"] = tuple(sample >> 8 for sample in value)
    image.load()


def _with_values(values: np.ndarray, image: PIL.Image.Image) -> PIL.Image.Image:
    made = PIL.Image.fromarray(values)
    made.filename = getattr(image, "filename", "")
    # `_unpack` asks for the format that floats came from.
    made.format = image.format
    if "transparency" in image.info:
        made.info["transparency"] = image.info["transparency"]
    return made


def _check_whole(tags: Any, image: PIL.Image.Image, name: str) -> None:
    """Refuses a TIFF that Pillow shows a part of, or what lies beside its pixels; warns of bands that are
    no colors."""
    bands = tags.get(SAMPLES_PER_PIXEL, 1)
    offsets = tags.get(TILE_OFFSETS) or tags.get(OFFSETS) or ()
    if 0 in _tuple(offsets):
        raise UnsupportedImageError(
            "it is sparse: some of its tiles were never written, which Pillow does not know of; "
            "vit_hf.open_image "
            "reads it (pip install vit_hf[large])"
        )
    planes = _num_planes(str(tags.get(DESCRIPTION, "")), image.width * image.height * bands)
    if planes > 1:
        raise UnsupportedImageError(
            f"it is a stack of {planes} planes: save the plane that you mean as an image of its own"
        )
    extra = tags.get(EXTRA_SAMPLES, ())
    unspecified = sum(value == 0 for value in _tuple(extra))
    if tags.get(PHOTOMETRIC) in (0, 1) and (bands > 2 or (bands == 2 and unspecified)):
        raise unknown_bands(bands, f"{tags.get(BITS_PER_SAMPLE, (1,))[0]} bits", tags.get(PHOTOMETRIC))
    compressed, wide = tags.get(COMPRESSION, 1) != 1, max(_tuple(tags.get(BITS_PER_SAMPLE, 1))) > 8
    # Pillow 12 takes each byte for a sample, and swaps bytes that libtiff swapped before.
    if (tags.get(PLANAR) == 2 and bands > 1 and wide) or (
        tags.prefix == b"MM" and compressed and image.mode in ("I", "F")
    ):
        raise UnsupportedImageError(
            "its samples are stored in a way that Pillow misreads (separate planes of more than "
            "8 bits, or compressed "
            "big-endian ones); vit_hf.open_image reads it (pip install vit_hf[large])"
        )
    if unspecified:
        warn_of_extra_bands(name, bands, unspecified)


def _tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def warn_of_extra_bands(name: str, bands: int, unspecified: int) -> None:
    """Says once for a file that bands without a meaning are not shown."""
    logger.warning_once(
        f"{name} has {bands} bands, of which {unspecified} {'is' if unspecified == 1 else 'are'} "
        "not part of its "
        "colors (ExtraSamples 0, such as infrared) and will not be looked at. To use all of "
        "them, give arrays."
    )


def _num_planes(description: str, num_samples: int) -> int:
    """How many planes of one image the writer of a TIFF says that it has: tifffile, ImageJ, OME."""
    if description.startswith('{"shape"'):
        shape = re.match(r'\{"shape": \[([\d, ]+)\]', description)
        values = math.prod(map(int, shape[1].split(","))) if shape else 0
        return values // num_samples
    if description.startswith("ImageJ="):
        found = re.search(r"\bimages=(\d+)", description)
        return int(found[1]) if found else 1
    found = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", description)
    if found:
        sizes = dict(re.findall(r'\bSize([CTZ])="(\d+)"', found[0]))
        samples = re.search(r'\bSamplesPerPixel="(\d+)"', description)
        return math.prod(map(int, sizes.values())) // max(1, int(samples[1]) if samples else 1)
    return 1


def _unpack(image: PIL.Image.Image, do_convert_rgb: bool) -> PIL.Image.Image:
    """An image with 8-bit channels that mean brightness, in RGB if asked for."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        transparent = image.info.get("transparency")
        if transparent is None:
            gray = to_bytes(values)
        else:
            opaque = np.where(values == transparent, 0, 65535)
            gray = samples_to_bytes(np.dstack([values, opaque]).astype(np.uint16))
        image = PIL.Image.fromarray(gray)
    elif image.mode == "F":
        # A region of a file must mean the same as the whole.
        is_stored = image.format is not None
        image = PIL.Image.fromarray((to_bytes if is_stored else _floats_to_eight_bits)(np.asarray(image)))
    # As in transformers: what shines through is white.
    has_alpha = image.mode in ("LA", "PA", "RGBA", "RGBa") or image.info.get("transparency") is not None
    if do_convert_rgb and has_alpha:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, image).convert("RGB")
    if do_convert_rgb:
        return image if image.mode == "RGB" else image.convert("RGB")
    # Palette indices are no brightness, and bits of mode 1 would arrive as bools.
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if has_alpha else "RGB")
    return image.convert("L") if image.mode == "1" else image


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values of any shape as uint8, by rules that look at no more than one value.

    What a value means must not depend on the region it is read in, so nothing is scaled by the largest value
    around: bool is 0 or 255, uint16 is divided by 257, other integers are in 0..255, floats in 0..1.

    Raises:
        ValueError: for values beyond these, NaN and infinite ones, and other dtypes.
    """
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.newbyteorder("=") == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind not in "iuf":
        raise ValueError(
            f"its dtype is {values.dtype}: it must be bool, uint8, uint16, floats in 0..1 or "
            "integers in 0..255"
        )
    low, high, top = values.min(), values.max(), 1 if kind == "f" else 255
    # Written so that NaN fails, too.
    if not (low >= 0 and high <= top):
        raise ValueError(
            f"its {values.dtype} values reach from {low} to {high}: scale them to 0..{top}, or "
            "give or save them as "
            "uint8 or uint16 (Pillow's mode I;16)"
        )
    if kind == "f":
        return np.round(values.astype(np.float32) * 255).astype(np.uint8)
    return values.astype(np.uint8)


def samples_to_bytes(values: np.ndarray) -> np.ndarray:
    """Samples `(H, W, C)` of a file as uint8: `to_bytes`, but colors of 16 bits lose their low byte.

    Pillow reads them so, and a file must show the same pixels whoever reads it. It is at most 1 off.
    """
    if values.dtype.newbyteorder("=") == np.uint16 and values.shape[2] > 1:
        return (values >> 8).astype(np.uint8)
    return to_bytes(values)


def _floats_to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Values of a Pillow image of floats in memory, which by custom are either 0..1 or 0..255."""
    low, high = float(values.min()), float(values.max())
    # Written so that NaN fails, too.
    if not (low >= 0 and high <= 255):
        raise ValueError(f"its float values reach from {low} to {high}: scale them to 0..1 or 0..255")
    return np.round(values * 255 if high <= 1 else values).astype(np.uint8)


def _to_tensor(array: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array
    if array.dtype.kind not in "buif":
        raise ValueError(f"its dtype is {array.dtype}: give bools, integers or floats")
    # torch takes no foreign byte order or negative strides, and warns of read-only memory.
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "WRITEABLE"]))


def _channels_first(array: torch.Tensor, input_data_format: str | ChannelDimension | None) -> torch.Tensor:
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise ValueError(f"its shape is {tuple(array.shape)}: give (H, W), (C, H, W) or (H, W, C)")
    if input_data_format is None:
        # Two rows of a colored picture are no two channels.
        counts = (1, 3) if {1, 3} & {array.shape[0], array.shape[2]} else (2, 4)
        try:
            input_data_format = infer_channel_dimension_format(array, num_channels=counts)
        except ValueError:
            raise ValueError(
                f"its shape {tuple(array.shape)} has neither 1 (gray), 2 (with alpha), 3 (RGB) "
                "nor 4 (RGBA) channels first or last; "
                "for other channels say input_data_format='channels_first' or 'channels_last'"
            ) from None
    return array.permute(2, 0, 1) if input_data_format == ChannelDimension.LAST else array


def _plain_values(array: torch.Tensor) -> torch.Tensor:
    """Bools and integers as uint8 in 0..255, floats as float32."""
    if array.dtype == torch.uint8:
        return array
    if array.is_floating_point():
        if not torch.isfinite(array).all():
            raise ValueError(f"{int((~torch.isfinite(array)).sum())} of its values are NaN or infinite")
        return array.float()
    if array.is_complex():
        raise ValueError(f"its dtype is {array.dtype}: give bools, integers or floats")
    return torch.from_numpy(to_bytes(array.cpu().numpy())).to(array.device)


def _array_to_rgb(pixels: torch.Tensor) -> torch.Tensor:
    """Gray `(1, H, W)`, gray with alpha, or RGBA `(4, H, W)` to `(3, H, W)`, on white."""
    channels = pixels.shape[0]
    if channels == 3:
        return pixels
    if channels == 1:
        return pixels.expand(3, -1, -1)
    if channels not in (2, 4):
        raise ValueError(
            f"its {channels} channels cannot be made RGB: give 1 (gray), 2 (with alpha), 3 (RGB) "
            "or 4 (RGBA), or "
            f"do_convert_rgb=False with {channels} values of image_mean and image_std"
        )
    if not pixels.is_floating_point():
        # Rounded as in Pillow images, so that an array shows what its file shows.
        image = PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
        on_white = torch.from_numpy(np.array(_unpack(image, do_convert_rgb=True)))
        return on_white.permute(2, 0, 1).to(pixels.device)
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            "it has alpha in floats beyond 0..1, so what is opaque is unknown: scale it, or give uint8"
        )
    alpha = pixels[-1:]
    return (pixels[:-1] * alpha + (1 - alpha)).expand(3, -1, -1)
