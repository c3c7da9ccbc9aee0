"""One file of every kind that `open_image` reads, and the pixels it shows."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import tifffile
import zarr

from vit_hf.model.image_loading import read_image, to_pixels


def picture(height=389, width=517):
    """Smooth, so that JPEG keeps it, with some noise, so that no two places are alike."""
    rows, columns = np.mgrid[:height, :width]
    waves = [
        np.sin(rows / 31) + np.cos(columns / 47),
        np.sin((rows + columns) / 53),
        np.cos(rows * columns / 9000),
    ]
    noise = np.random.default_rng(0).normal(0, 2, (height, width, 3))
    return np.clip(np.stack(waves, -1) * 60 + 128 + noise, 0, 255).astype(np.uint8)


RGB = picture()
GREY = RGB[..., 0]
ALPHA = RGB[..., 1]
RGBA = np.dstack([RGB, ALPHA])
GREY_RGB = np.repeat(GREY[..., None], 3, axis=2)
IMAGE = PIL.Image.fromarray(RGB)
JPEG = {"compression": "jpeg", "compressionargs": {"level": 95}}
TILED = {"tile": (64, 80), "photometric": "rgb"}
SHRUNK = [np.asarray(IMAGE.resize((517 // n, 389 // n), PIL.Image.Resampling.BOX)) for n in (2, 4)]


def on_white(colours, alpha=ALPHA):
    weight = alpha[..., None] / 255
    return colours * weight + 255 * (1 - weight)


def as_pillow(path):
    return to_pixels(read_image(path), True).permute(1, 2, 0).numpy()


class File(NamedTuple):
    name: str
    write: Callable[[Path], object]
    # The pixels it shows; None for what Pillow decodes.
    pixels: np.ndarray | None = RGB
    # In grey levels.
    tolerance: float = 0


def tiff(data=RGB, **options):
    return lambda path: tifffile.imwrite(path, data, **{"photometric": "rgb", **options})


def npy(data):
    return lambda path: np.save(path, data)


def pillow(image=IMAGE, **options):
    return lambda path: image.save(path, **options)


def zarr_array(data=RGB, chunks=(100, 90, 3), **options):
    def write(path):
        array = zarr.create_array(path, shape=data.shape, chunks=chunks, dtype=data.dtype, **options)
        array[...] = data

    return write


def pyramid(subifds=True, big=False, data=RGB, **options):
    def write(path):
        options_ = {**TILED, **options}
        with tifffile.TiffWriter(path, bigtiff=big) as file:
            file.write(data, subifds=len(SHRUNK) if subifds else 0, metadata=None, **options_)
            for copy in SHRUNK:
                file.write(copy, subfiletype=1, metadata=None, **options_)

    return write


def ome_zarr(version):
    def write(path):
        group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
        for index, level in enumerate([RGB, *SHRUNK]):
            data = np.moveaxis(level, -1, 0)[None, :, None]  # (T, C, Z, Y, X)
            array = group.create_array(
                str(index), shape=data.shape, chunks=(1, 1, 1, 64, 100), dtype=data.dtype
            )
            array[...] = data
        scales = [
            {
                "axes": [{"name": name} for name in "tczyx"],
                "datasets": [{"path": str(index)} for index in range(1 + len(SHRUNK))],
            }
        ]
        group.attrs.update({"multiscales": scales} if version == "0.4" else {"ome": {"multiscales": scales}})

    return write


def slide(path):
    """What OpenSlide takes for a slide of Aperio's."""
    options = {**TILED, "tile": (128, 128), "metadata": None, **JPEG}
    with tifffile.TiffWriter(path) as file:
        file.write(RGB, description="Aperio Image Library v11.2.1\n517x389", **options)
        file.write(SHRUNK[0], description="Aperio Image Library v11.2.1\n258x194", **options)


def turned(orientation):
    exif = PIL.Image.Exif()
    exif[274] = orientation
    return {"exif": exif}


FILES = [
    File("rgb.npy", npy(RGB)),
    File("channels_first.npy", npy(np.moveaxis(RGB, -1, 0))),
    File("fortran.npy", npy(np.asfortranarray(RGB))),
    File("grey.npy", npy(GREY), GREY_RGB),
    File("rgba.npy", npy(RGBA), on_white(RGB), 1),
    File("bool.npy", npy(GREY > 99), np.where(GREY_RGB > 99, 255, 0)),
    File("uint16.npy", npy(RGB.astype(">u2") * 257)),
    File("float.npy", npy(RGB / 255)),
    File("int.npy", npy(RGB.astype(np.int32))),
    File("strips.tif", tiff(rowsperstrip=7, compression="zlib")),
    File("strip_uncompressed.tif", tiff()),
    File("tiles.tif", tiff(tile=(64, 80))),
    File("big.tif", tiff(tile=(64, 80), bigtiff=True, byteorder=">")),
    File("lzw.tif", tiff(tile=(64, 80), compression="lzw", predictor=True)),
    File("zstd.tif", tiff(tile=(64, 80), compression="zstd")),
    File(
        "planes.tif",
        tiff(np.moveaxis(RGB, -1, 0), planarconfig="separate", tile=(64, 80), compression="zlib"),
    ),
    File("planes_uncompressed.tif", tiff(np.moveaxis(RGB, -1, 0), planarconfig="separate")),
    File("uint16.tif", tiff(RGB.astype(np.uint16) * 257, tile=(64, 80))),
    File("uint16_strip.tif", tiff(RGB.astype(np.uint16) * 257, byteorder=">")),
    File("float.tif", tiff((RGB / 255).astype(np.float32), tile=(64, 80))),
    File("grey.tif", tiff(GREY, photometric="minisblack", tile=(64, 80)), GREY_RGB),
    File("negative.tif", tiff(GREY, photometric="miniswhite", tile=(64, 80)), 255 - GREY_RGB),
    File("one_bit.tif", tiff(GREY > 99, photometric="minisblack"), np.where(GREY_RGB > 99, 255, 0)),
    File("fax.tif", pillow(IMAGE.convert("1"), compression="group4"), None),
    File("palette.tif", pillow(IMAGE.quantize(99)), None),
    File("cmyk.tif", pillow(IMAGE.convert("CMYK")), None),
    File("pillow.tif", pillow(compression="tiff_lzw"), None),
    File("turned.tif", tiff(tile=(64, 80), extratags=[(274, "H", 1, 6, True)]), np.rot90(RGB, -1)),
    File("rgba.tif", tiff(RGBA, tile=(64, 80), extrasamples=["unassalpha"]), on_white(RGB), 1),
    File(
        "premultiplied.tif",
        tiff(
            np.dstack([np.round(RGB * (ALPHA[..., None] / 255)).astype(np.uint8), ALPHA]),
            extrasamples=["assocalpha"],
        ),
        on_white(RGB),
        1,
    ),
    File("infrared.tif", tiff(RGBA, tile=(64, 80), extrasamples=["unspecified"])),
    File("jpeg.tif", tiff(tile=(64, 80), **JPEG), None),
    File("jpeg_by_libtiff.tif", pillow(compression="jpeg", quality=95), None, 3),
    File("jpeg2000.tif", tiff(tile=(64, 80), compression="jpeg2000")),
    File("webp.tif", tiff(tile=(64, 80), compression="webp", compressionargs={"lossless": True})),
    File("subifds.tif", pyramid()),
    File("pages.tif", pyramid(subifds=False, big=True, compression="zlib")),
    File("image.ome.tif", tiff(tile=(64, 80), ome=True)),
    File("rgb.zarr", zarr_array()),
    File("sharded.zarr", zarr_array(shards=(200, 180, 3))),
    File("channels_first.zarr", zarr_array(np.moveaxis(RGB, -1, 0), (1, 128, 128))),
    File("uint16.zarr", zarr_array(GREY.astype(np.uint16) * 257, (128, 128), zarr_format=2), GREY_RGB),
    File("ome_4.zarr", ome_zarr("0.4")),
    File("ome_5.zarr", ome_zarr("0.5")),
    File("slide.svs", slide, None),
    File("rgb.png", pillow()),
    File("grey.png", pillow(PIL.Image.fromarray(GREY)), GREY_RGB),
    File("uint16.png", pillow(PIL.Image.fromarray(GREY.astype(np.uint16) * 257)), GREY_RGB),
    File("one_bit.png", pillow(IMAGE.convert("1")), None),
    File("palette.png", pillow(IMAGE.quantize(99), transparency=3), None),
    File("rgba.png", pillow(PIL.Image.fromarray(RGBA)), None),
    File("grey_alpha.png", pillow(PIL.Image.fromarray(RGBA).convert("LA")), None),
    *(File(f"turned_{n}.png", pillow(**turned(n)), None) for n in range(1, 9)),
    File("rgb.jpg", pillow(), None),
    File("444.jpg", pillow(quality=95, subsampling=0), None),
    File("progressive.jpg", pillow(progressive=True), None),
    File("grey.jpg", pillow(PIL.Image.fromarray(GREY)), None),
    File("cmyk.jpg", pillow(IMAGE.convert("CMYK")), None),
    *(File(f"turned_{n}.jpg", pillow(**turned(n)), None) for n in range(1, 9)),
    File("lossless.webp", pillow(lossless=True), None),
    File("rgb.bmp", pillow(), None),
    File("palette.gif", pillow(IMAGE.quantize(99)), None),
]
