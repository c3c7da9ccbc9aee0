"""A file shows one picture, whoever reads it: `open_image`, both image processors, and what training
reads."""

import io
import os
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vit_hf import AdaptiveViTImageProcessor, AdaptiveViTImageProcessorPil, open_image
from vit_hf.data.images import decode_image
from vit_hf.model.image_loading import read_image, to_pixels


HEIGHT, WIDTH = 33, 47
COLORS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GRAY = COLORS[..., 0]
ALPHA = COLORS[..., 1]
RAW = {"do_resize": False, "do_rescale": False, "do_normalize": False}
PROCESSORS = {
    "torchvision": AdaptiveViTImageProcessor(**RAW),
    "pil": AdaptiveViTImageProcessorPil(**RAW),
}


def as_rgb(values):
    return np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values


def on_white(colors, alpha=ALPHA):
    weight = alpha[..., None] / 255
    return as_rgb(colors) * weight + 255 * (1 - weight)


def by_open_image(path):
    with open_image(path) as image:
        whole = image.read(0, 0, image.height, image.width)
        # Regions as well, across the edges of tiles and strips.
        parts = [
            image.read(top, 0, min(7, image.height - top), image.width) for top in range(0, image.height, 7)
        ]
    assert np.array_equal(whole, np.concatenate(parts))
    return whole


def by_processor(name):
    def read(path):
        return PROCESSORS[name](str(path))["pixel_values"][0]

    return read


def by_pillow_object(path):
    return to_pixels(PIL.Image.open(path), True)


READERS = {
    "open_image": by_open_image,
    "torchvision": by_processor("torchvision"),
    "pil": by_processor("pil"),
    "training": lambda path: to_pixels(decode_image(str(path)), True),
    "bytes": lambda path: to_pixels(decode_image({"bytes": path.read_bytes(), "path": str(path)}), True),
    "pillow object": by_pillow_object,
}
# Readers that raise the error themselves; `decode_image` leaves what values mean to whoever asks for pixels.
NAMING = ("open_image", "torchvision", "pil")
# Without the name of a file, or once Pillow has refused, nobody else is asked.
EVERY_FILE = ("open_image", "torchvision", "pil", "training")


def all_readings(path, readers=EVERY_FILE):
    """reader -> pixels `(H, W, 3)`, or the text of the error."""
    readings = {}
    for name in readers:
        try:
            pixels = np.asarray(READERS[name](path))
        except ValueError as error:
            readings[name] = str(error)
            assert path.name in readings[name] or name not in NAMING, readings[name]
        else:
            readings[name] = pixels if name == "open_image" else np.moveaxis(pixels, 0, 2)
    return readings


def check(path, expected=None, readers=EVERY_FILE, tolerance=1):
    """All show the same picture, or all refuse; `expected`: the picture, or None if it is to be refused."""
    readings = all_readings(path, readers)
    refused = {name: reading for name, reading in readings.items() if isinstance(reading, str)}
    if expected is None:
        assert len(refused) == len(readings), f"read by {sorted(readings.keys() - refused.keys())}"
        return readings
    assert not refused
    for name, pixels in readings.items():
        assert pixels.shape == expected.shape, name
        assert np.abs(pixels.astype(float) - expected).max() <= tolerance, name
    return readings


# -- TIFF: type of numbers x meaning x layout x byte order

LAYOUTS = {
    "whole": {},
    "strips": {"rowsperstrip": 5, "compression": "zlib"},
    "tiles": {"tile": (16, 32), "compression": "lzw"},
}
# type -> (values, gray levels; None if it is refused)
NUMBERS = {
    "bool": (GRAY > 99, (GRAY > 99) * 255),
    "uint8": (GRAY, GRAY),
    "int8": ((GRAY // 2).astype(np.int8), GRAY // 2),
    "negative int8": (GRAY.view(np.int8), None),
    "uint16": (GRAY.astype(np.uint16) * 257, GRAY),
    "dark uint16": (GRAY.astype(np.uint16), GRAY / 257),
    **{
        f"small {name}": (GRAY.astype(name), GRAY) for name in ("int16", "int32", "uint32", "int64", "uint64")
    },
    **{
        f"large {name}": (GRAY.astype(name) * 100, None)
        for name in ("int16", "int32", "uint32", "int64", "uint64")
    },
    "uint32 beyond int32": (GRAY.astype(np.uint32) + 2**31, None),
    "negative int16": (GRAY.astype(np.int16) - 300, None),
    "float16": ((GRAY / 255).astype(np.float16), GRAY),
    "float32": ((GRAY / 255).astype(np.float32), GRAY),
    "float64": (GRAY / 255, GRAY),
    "float32 to 255": (GRAY.astype(np.float32), None),
    "negative float32": ((GRAY / 255 - 0.5).astype(np.float32), None),
    "nan": (np.where(GRAY > 99, np.nan, 0.5).astype(np.float32), None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("numbers", NUMBERS)
def test_gray_tiff(numbers, layout, tmp_path):
    values, levels = NUMBERS[numbers]
    for order, meaning in (("<", "minisblack"), (">", "minisblack"), ("<", "miniswhite")):
        path = tmp_path / f"{ord(order)}_{meaning}.tif"
        tifffile.imwrite(path, values, photometric=meaning, byteorder=order, **LAYOUTS[layout])
        expected = levels
        if levels is not None:
            expected = as_rgb(255 - levels if meaning == "miniswhite" else levels)
        check(path, expected)


@pytest.mark.parametrize("bits", [2, 4, 12])
def test_tiff_of_odd_bits(bits, tmp_path):
    values = GRAY >> (8 - bits) if bits < 8 else GRAY.astype(np.uint16) << 4
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="minisblack", bitspersample=bits)
    check(path, as_rgb(values * (255 / (2**bits - 1))))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_color_tiff(data, tmp_path):
    """Bit depth x alpha x extra bands x planes x byte order x orientation x layout."""
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16]))
    scale = 257 if dtype is np.uint16 else 1
    extra = data.draw(
        st.sampled_from(
            [[], ["unassalpha"], ["unspecified"], ["unspecified"] * 2, ["unspecified", "unassalpha"]]
        )
    )
    separate = data.draw(st.booleans()) and not extra
    orientation = data.draw(st.integers(0, 9))
    bands = np.dstack([COLORS, *[ALPHA] * len(extra)]).astype(dtype) * scale
    bands = np.moveaxis(bands, 2, 0) if separate else bands
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        bands,
        photometric="rgb",
        extrasamples=extra,
        planarconfig="separate" if separate else "contig",
        byteorder=data.draw(st.sampled_from("<>")),
        extratags=[(274, "H", 1, orientation, True)],
        **LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))],
    )
    expected = on_white(COLORS) if "unassalpha" in extra else COLORS
    check(path, turned(expected, orientation))


@pytest.mark.parametrize("values", [GRAY, GRAY.astype(np.uint16) * 257], ids=["uint8", "uint16"])
def test_orientation_of_gray_tiff(values, tmp_path):
    """Uncompressed and in one piece: Pillow maps such files into memory."""
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}.tif"
        tag = (274, "H", 1, orientation, True)
        tifffile.imwrite(path, values, photometric="minisblack", extratags=[tag])
        check(path, turned(as_rgb(GRAY), orientation), [*EVERY_FILE, "bytes", "pillow object"])


def turned(pixels, orientation):
    """The upright picture of what is stored in an orientation (EXIF 2.3, tag 274); others mean nothing."""
    turn = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }.get(orientation, lambda a: a)
    return turn(pixels)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [2, 3, 4, 13])
def test_bands_without_colors_are_refused_by_number(bands, dtype, planes, tmp_path):
    values = np.zeros((HEIGHT, WIDTH, bands), dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        np.moveaxis(values, 2, 0) if planes == "separate" else values,
        photometric="minisblack",
        planarconfig=planes,
    )
    for text in check(path).values():
        assert f"{bands} bands" in text
        assert "num_channels" in text
        assert "undamaged" not in text


def test_extra_bands_are_not_dropped_in_silence(tmp_path, caplog):
    path = tmp_path / "infrared.tif"
    tifffile.imwrite(path, np.dstack([COLORS, ALPHA]), photometric="rgb", extrasamples=["unspecified"])
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        check(path, COLORS)
    finally:
        logging.disable_propagation()
    assert "has 4 bands, of which 1 is not part of its colors" in caplog.text


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"ome": True}], ids=["tifffile", "imagej", "ome"])
@pytest.mark.parametrize("planes", [3, 5])
def test_stacks_are_refused(planes, options, tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((planes, HEIGHT, WIDTH), np.uint8), photometric="minisblack", **options)
    check(path)


def test_first_of_several_images(tmp_path):
    first, second = (PIL.Image.fromarray(pixels) for pixels in (COLORS, 255 - COLORS))
    for suffix, options in (("tif", {}), ("png", {}), ("webp", {"lossless": True})):
        first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **options)
        check(tmp_path / f"a.{suffix}", COLORS)


@pytest.mark.parametrize("nodata", [None, "0", "255", "-9999", "nan"])
@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
@pytest.mark.parametrize("layout", [{"tile": (16, 16)}, {"rowsperstrip": 8}], ids=["tiles", "strips"])
def test_sparse_tiff(layout, compression, nodata, tmp_path):
    for planes in ("contig", "separate"):
        path = tmp_path / f"{planes}.tif"
        tifffile.imwrite(
            path,
            np.moveaxis(COLORS, 2, 0) if planes == "separate" else COLORS,
            photometric="rgb",
            planarconfig=planes,
            compression=compression,
            extratags=[] if nodata is None else [(42113, "s", 0, nodata, True)],
            **layout,
        )
        whole = by_open_image(path)
        kind = "Tile" if "tile" in layout else "Strip"
        with tifffile.TiffFile(path, mode="r+") as file:
            for name in (f"{kind}Offsets", f"{kind}ByteCounts"):
                tag = file.pages.first.tags[name]
                tag.overwrite(
                    [0 if place in (1, len(tag.value) - 1) else n for place, n in enumerate(tag.value)]
                )
        read = check(path, by_open_image(path))["open_image"]
        changed = (read != whole).any(2)
        assert 0 < changed.sum() < changed.size
        assert (read[read != whole] == (255 if nodata == "255" else 0)).all()


def test_lab(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", COLORS, photometric="cielab")
    check(tmp_path / "a.tif", np.asarray(PIL.Image.open(tmp_path / "a.tif").convert("RGB")))


# -- PNG: color type x bits x transparency


def chunk(kind, body, checksum=None):
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(values, color_type, bits, before=b"", after=b""):
    height, width = values.shape[:2]
    if bits == 16:
        rows = [b"\0" + row.astype(">u2").tobytes() for row in values]
    elif bits == 8:
        rows = [b"\0" + row.astype(np.uint8).tobytes() for row in values]
    else:
        split = (values[..., None] >> np.arange(bits)[::-1]) & 1
        rows = [b"\0" + np.packbits(row).tobytes() for row in split.reshape(height, -1)]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            before,
            chunk(b"IDAT", zlib.compress(b"".join(rows))),
            after,
            chunk(b"IEND", b""),
        ]
    )


PNG_KINDS = [
    *((0, bits, transparent) for bits in (1, 2, 4, 8, 16) for transparent in (False, True)),
    *((2, bits, transparent) for bits in (8, 16) for transparent in (False, True)),
    *((3, bits, transparent) for bits in (1, 2, 4, 8) for transparent in (False, True)),
    *((color_type, bits, False) for color_type in (4, 6) for bits in (8, 16)),
]


@pytest.mark.parametrize(("color_type", "bits", "transparent"), PNG_KINDS)
def test_png(color_type, bits, transparent, tmp_path):
    random, top = np.random.default_rng(1), 2**bits - 1
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    values = random.integers(0, top + 1, (HEIGHT, WIDTH, channels))
    values[3:9] = values[0, 0]
    before, levels, alpha = b"", values * (255 / top), np.full((HEIGHT, WIDTH), 255)
    if color_type == 3:
        palette = random.integers(0, 256, (top + 1, 3), dtype=np.uint8)
        before, levels = chunk(b"PLTE", palette.tobytes()), palette[values[..., 0]].astype(float)
        if transparent:
            opacity = random.integers(0, 256, top + 1, dtype=np.uint8)
            before, alpha = before + chunk(b"tRNS", opacity.tobytes()), opacity[values[..., 0]]
    elif transparent:
        before = chunk(b"tRNS", values[0, 0].astype(">u2").tobytes())
        alpha = np.where((values == values[0, 0]).all(2), 0, 255)
    elif channels in (2, 4):
        levels, alpha = levels[..., :-1], levels[..., -1]
    levels = np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels
    path = tmp_path / "a.png"
    path.write_bytes(png(values if channels > 1 else values[..., 0], color_type, bits, before))
    check(path, on_white(levels, alpha), READERS, tolerance=2)


# -- JPEG, WebP, arrays


def jpeg(image=None, **options):
    file = io.BytesIO()
    (image or PIL.Image.fromarray(COLORS)).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def shown_by_pillow(content):
    return np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB"))


CMYK = jpeg(PIL.Image.frombytes("CMYK", (WIDTH, HEIGHT), np.dstack([COLORS, ALPHA]).tobytes()))
ADOBE = CMYK.find(b"\xff\xee")
JPEGS = {
    "gray": jpeg(PIL.Image.fromarray(GRAY)),
    "rgb": jpeg(keep_rgb=True),
    "progressive": jpeg(progressive=True),
    "restarts": jpeg(restart_marker_rows=1),
    "cmyk": CMYK,
    "ycck": CMYK[: ADOBE + 15] + b"\2" + CMYK[ADOBE + 16 :],
    "cmyk without Adobe": CMYK[:ADOBE] + CMYK[ADOBE + 16 :],
}


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg(name, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEGS[name])
    check(path, shown_by_pillow(JPEGS[name]), READERS, tolerance=0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_orientation_of_photos(suffix, tmp_path):
    for orientation in range(10):
        exif = PIL.Image.Exif()
        exif[274] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        PIL.Image.fromarray(COLORS).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
        expected = turned(np.asarray(PIL.Image.open(path)), orientation)
        check(path, expected, READERS, tolerance=0)


ARRAYS = {
    "gray": (GRAY, as_rgb(GRAY)),
    "gray with alpha": (np.dstack([GRAY, ALPHA]), on_white(GRAY)),
    "rgb": (COLORS, COLORS),
    "rgba": (np.dstack([COLORS, ALPHA]), on_white(COLORS)),
    "uint16": (COLORS.astype(np.uint16) * 257, COLORS),
    "int16": (COLORS.astype(np.int16), COLORS),
    "floats": (COLORS / 255, COLORS),
    "bools": (GRAY > 99, as_rgb((GRAY > 99) * 255)),
    "five bands": (np.zeros((HEIGHT, WIDTH, 5), np.uint8), None),
    "negative": (-COLORS.astype(int), None),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_npy(name, tmp_path):
    array, expected = ARRAYS[name]
    path = tmp_path / "a.npy"
    np.save(path, array)
    check(path, expected)
    if expected is not None and array.dtype.kind != "f":
        in_memory = PROCESSORS["pil"](array)["pixel_values"][0]
        assert np.array_equal(np.moveaxis(np.asarray(in_memory), 0, 2), by_open_image(path))


# -- metadata that are damaged cost no pixels

EXIF = PIL.Image.Exif()
EXIF[274] = 1
EXIF = EXIF.tobytes()[6:]
PNG_METADATA = {
    "EXIF that is none": chunk(b"eXIf", b"junkjunk"),
    "empty EXIF": chunk(b"eXIf", b""),
    "cut EXIF": chunk(b"eXIf", EXIF[:12]),
    "text with a wrong checksum": chunk(b"tEXt", b"a\0b", checksum=1),
    "EXIF with a wrong checksum": chunk(b"eXIf", EXIF, checksum=1),
    "long XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
    "text that does not unpack": chunk(b"zTXt", b"a\0\0junk"),
    "text of an unknown compression": chunk(b"zTXt", b"a\0\7junk"),
    "profile that does not unpack": chunk(b"iCCP", b"name\0\5junk"),
    "profile that is none": chunk(b"iCCP", b"name\0\0" + zlib.compress(b"junk")),
    "raw EXIF that is none": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  10\nzz"),
    "short chunks": chunk(b"gAMA", b"") + chunk(b"pHYs", b"1") + chunk(b"cHRM", b"1") + chunk(b"sRGB", b""),
}
JPEG_METADATA = {
    "EXIF that is none": segment(0xE1, b"Exif\0\0junkjunk"),
    "empty EXIF": segment(0xE1, b"Exif\0\0"),
    "doubled EXIF header": segment(0xE1, b"Exif\0\0Exif\0\0" + EXIF),
    "cut EXIF": segment(0xE1, b"Exif\0\0" + EXIF[:12]),
    "profile that is none": segment(0xE2, b"ICC_PROFILE\0\1\1junk"),
    "profile without a number": segment(0xE2, b"ICC_PROFILE\0"),
    "multi-picture format that is none": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
    "XMP that is no text": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
    "Photoshop resources that are cut": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\xff\xff\xff\xff12"),
    "comment that is no text": segment(0xFE, b"\xff\xfe\0"),
    "unknown version of JFIF": segment(0xE0, b"JFIF\0\x09\x09\0\0\1\0\1\0\0"),
    "fill bytes": b"\xff\xff\xff",
}


def webp(*metadata, flags=0):
    file = io.BytesIO()
    PIL.Image.fromarray(COLORS).save(file, "WEBP", lossless=True)
    size = struct.pack("<I", WIDTH - 1)[:3] + struct.pack("<I", HEIGHT - 1)[:3]
    chunks = [(b"VP8X", bytes([flags, 0, 0, 0]) + size)]
    chunks += [part for part in metadata if part[0] == b"ICCP"]
    chunks += [(b"VP8L", file.getvalue()[20:])]
    chunks += [part for part in metadata if part[0] != b"ICCP"]
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


DAMAGED_METADATA = {
    **{f"{name}.png": png(COLORS, 2, 8, before=part) for name, part in PNG_METADATA.items()},
    **{f"{name} at the end.png": png(COLORS, 2, 8, after=part) for name, part in PNG_METADATA.items()},
    **{f"{name}.jpg": jpeg()[:2] + part + jpeg()[2:] for name, part in JPEG_METADATA.items()},
    "EXIF that is none.webp": webp((b"EXIF", b"junkjunk"), flags=8),
    "empty EXIF.webp": webp((b"EXIF", b""), flags=8),
    "profile that is none.webp": webp((b"ICCP", b"junk"), flags=32),
    "XMP that is no text.webp": webp((b"XMP ", b"\xff\xfe"), flags=4),
    "declared metadata missing.webp": webp(flags=0x2C),
    "padding.png": png(COLORS, 2, 8) + b"\0" * 999 + b"junk",
    "padding.jpg": jpeg() + b"\0" * 999 + b"junk",
    "two in one.jpg": jpeg() + jpeg(),
    "padding before the end.jpg": jpeg()[:-2] + b"\0\0\0\0\xff\xd9",
    "padding.webp": webp() + b"\0" * 77,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DAMAGED_METADATA)
def test_damaged_metadata_cost_no_pixels(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(DAMAGED_METADATA[name])
    check(path, shown_by_pillow(jpeg()) if name.endswith("jpg") else COLORS, tolerance=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", [png(COLORS, 2, 8), jpeg(), webp()], ids=["png", "jpeg", "webp"])
def test_cut_files_are_refused(content, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(content[: len(content) // 2])
    check(path)


@pytest.mark.parametrize("tag", [(274, "H", 1, 300, True), (274, "s", 0, "upside down", True)])
def test_orientation_of_tiff_that_is_none(tag, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", COLORS, photometric="rgb", extratags=[tag])
    check(tmp_path / "a.tif", COLORS)


# -- undamaged files beyond Pillow's limit


def test_large_photo_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    PIL.Image.fromarray(COLORS).save(path)
    np.save(tmp_path / "large.npy", COLORS)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 3)
    for source in (path, path.read_bytes(), tmp_path / "large.npy"):
        with pytest.raises(
            ValueError, match=r"exceeds limit of \d+ pixels.*--tile.*MAX_IMAGE_PIXELS"
        ) as error:
            read_image(source)
        assert "undamaged" not in str(error.value)
    assert np.array_equal(by_open_image(path), COLORS)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(os.fspath(path)).size == (WIDTH, HEIGHT)
