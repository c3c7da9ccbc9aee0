"""File suffixes of images: the one list for folders, readers, prediction, training and the web page."""

import os

import PIL.Image


# Pillow recognizes these formats, but decodes none of their pixels by itself.
STUB_FORMATS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}


# Suffixes are in lower case, with the dot. Images that are decoded whole: all that training reads.
WHOLE_SUFFIXES = frozenset(
    suffix
    for suffix, name in PIL.Image.registered_extensions().items()
    if name in PIL.Image.OPEN and name not in STUB_FORMATS
)


# Whole slides whose format cannot be inferred from the first bytes.
SLIDE_SUFFIXES = (".mrxs", ".vms", ".vmu", ".czi", ".dcm")


# Images that only `open_image` reads, a region at a time.
REGION_SUFFIXES = frozenset(
    {*SLIDE_SUFFIXES, ".svs", ".ndpi", ".scn", ".bif", ".svslide", ".btf", ".tf2", ".tf8", ".qptiff"}
    | {".lsm", ".stk", ".npy", ".zarr"}
)


IMAGE_SUFFIXES = WHOLE_SUFFIXES | REGION_SUFFIXES


# A folder with one of these is a zarr array or group, and so one image.
ZARR_FILES = (".zarray", ".zgroup", "zarr.json")


def is_whole_image(path: str | os.PathLike) -> bool:
    return os.path.splitext(path)[1].lower() in WHOLE_SUFFIXES


def is_image(path: str | os.PathLike) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def is_zarr(path: str | os.PathLike) -> bool:
    return any(os.path.exists(os.path.join(path, name)) for name in ZARR_FILES)
