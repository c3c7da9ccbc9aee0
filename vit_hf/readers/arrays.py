"""Images that are arrays: in memory, in `.npy` files, in Zarr."""

from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format

from ..model.image_loading import to_bytes, to_pixels
from .base import (
    REDUCING_GAP,
    FileSource,
    ImageSource,
    TiledSource,
    TileLayout,
    check_thumbnail_size,
    import_extra,
)
from .colors import to_rgb


class ArraySource(ImageSource):
    """An image in memory. Float arrays are in 0..1."""

    def __init__(self, image: PIL.Image.Image | np.ndarray | torch.Tensor, name: str):
        self.name = name
        try:
            pixels = to_pixels(image, do_convert_rgb=True).permute(1, 2, 0).numpy()  # (H, W, 3)
            self.pixels = to_bytes(pixels)
        except ValueError as error:
            raise ValueError(f"Cannot read {name}: {error}.") from error
        self.height, self.width = self.pixels.shape[:2]

    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return self.pixels[top : top + height, left : left + width]

    def thumbnail(self, height: int, width: int) -> np.ndarray:
        check_thumbnail_size(self.name, height, width)
        image = PIL.Image.fromarray(np.ascontiguousarray(self.pixels))
        return np.asarray(
            image.resize((width, height), PIL.Image.Resampling.BILINEAR, reducing_gap=REDUCING_GAP)
        )


class NpySource(FileSource):
    """An array in a `.npy` file: `(H, W)`, `(C, H, W)` or `(H, W, C)` with 1 to 4 channels; no object arrays.

    bool, uint8, uint16 (divided by 257), other integers in 0..255, or floats in 0..1.
    """

    def _open(self) -> list[tuple[int, int]]:
        self._array = None
        array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        self._array = channels_last(array)  # (H, W) or (H, W, C)
        return [self._array.shape[:2]]

    def _close(self) -> None:
        # The map is closed with its last reference.
        self._array = None

    def _read_level(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        return to_rgb(to_bytes(np.asarray(self._array[top : top + height, left : left + width])))


def channels_last(array: np.ndarray) -> np.ndarray:
    """A view `(H, W)` or `(H, W, C)` of an array whose channels are first, last, or none.

    Raises:
        ValueError: if it has another shape, or a dtype that `to_bytes` refuses.
    """
    to_bytes(np.zeros(1, array.dtype))
    if array.ndim == 2:
        return array
    shape = tuple(array.shape)
    if array.ndim != 3:
        raise ValueError(f"its shape is {shape}: it must be (H, W), (C, H, W) or (H, W, C)")
    try:
        place = infer_channel_dimension_format(array, num_channels=(1, 2, 3, 4))
    except ValueError:
        raise ValueError(f"its shape {shape} has not 1 to 4 channels first or last") from None
    return array if place == ChannelDimension.LAST else array.transpose(1, 2, 0)


class ZarrSource(TiledSource):
    """A folder with a zarr array, or an OME-Zarr image (`multiscales`, whose smaller copies make thumbnails).

    An array is `(H, W)`, `(C, H, W)` or `(H, W, C)` with 1 to 4 channels; OME-Zarr names its axes, of which
    all but y, x and c must have one entry. Values are as in `NpySource`. Chunks that are not there have the
    fill value, as zarr defines it.
    """

    def _open(self) -> list[tuple[int, int]]:
        self._forget_tiles()
        self._arrays: list[Any] = []
        zarr = import_extra("zarr", "zarr", f"Reading {self.name}")
        store = zarr.open(self.path, mode="r")
        if isinstance(store, zarr.Array):
            self._arrays, axes = [store], None
        else:
            self._arrays, axes = _multiscales(store)
        self._order = [_order(array, axes) for array in self._arrays]
        self.grids = []
        for array, (y, x, c) in zip(self._arrays, self._order, strict=True):
            grid = TileLayout(array.shape[y], array.shape[x], array.chunks[y], array.chunks[x])
            other = np.prod([float(size) for axis, size in enumerate(array.chunks) if axis not in (y, x)])
            grid.check(int(other) * array.dtype.itemsize)
            self.grids.append(grid)
            to_rgb(to_bytes(np.zeros((1, 1, 1 if c is None else array.shape[c]), array.dtype)))
        return [(grid.height, grid.width) for grid in self.grids]

    def _close(self) -> None:
        self._forget_tiles()
        self._arrays = []

    def _tile(self, level: int, row: int, column: int) -> np.ndarray:
        array, grid, (y, x, c) = self._arrays[level], self.grids[level], self._order[level]
        height, width = grid.inside(row, column)
        place: list[int | slice] = [0] * array.ndim
        place[y] = slice(row * grid.tile_height, row * grid.tile_height + height)
        place[x] = slice(column * grid.tile_width, column * grid.tile_width + width)
        if c is not None:
            place[c] = slice(None)
        values = np.asarray(array[tuple(place)])
        # The axes that are left keep their order.
        left = sorted(axis for axis in (y, x, c) if axis is not None)
        values = values.transpose([left.index(axis) for axis in (y, x, c) if axis is not None])
        return to_rgb(to_bytes(values))


def _multiscales(group: Any) -> tuple[list[Any], list[str]]:
    """Arrays of an OME-Zarr image from large to small, and the names of their axes."""
    # In version 0.5 below "ome" (https://ngff.openmicroscopy.org/0.5), before at the top.
    attributes = dict(group.attrs)
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        names = ", ".join(sorted(group.array_keys())) or "none"
        raise ValueError(f"it is a group without OME-Zarr multiscales: open one of its arrays ({names})")
    arrays = [group[dataset["path"]] for dataset in scales[0]["datasets"]]
    # Version 0.3 has bare names, older ones always these five.
    axes = scales[0].get("axes", list("tczyx"))
    return arrays, [axis if isinstance(axis, str) else axis["name"] for axis in axes]


def _order(array: Any, axes: list[str] | None) -> tuple[int, int, int | None]:
    """Indices of the row, column and channel axes of an array (None without channels)."""
    if axes is None:
        # An array without content that has the same shape.
        view = channels_last(np.broadcast_to(np.zeros((), array.dtype), array.shape))
        if view.ndim == 2:
            return 0, 1, None
        return (0, 1, 2) if view.shape == array.shape else (1, 2, 0)
    if len(axes) != array.ndim or "y" not in axes or "x" not in axes:
        raise ValueError(
            f"its axes are {axes} and its shape is {array.shape}: it needs one name each, x and y among them"
        )
    long = {
        name: size for name, size in zip(axes, array.shape, strict=True) if name not in "yxc" and size != 1
    }
    if long:
        raise ValueError(f"it is a stack with {long}: save the plane that you mean, with t and z of 1")
    return axes.index("y"), axes.index("x"), axes.index("c") if "c" in axes else None
