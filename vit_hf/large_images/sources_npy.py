"""A `.npy` file, mapped into memory: only what is read is loaded."""

import numpy as np
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format

from ..model.image_loading import to_bytes
from .rgb_values import to_rgb
from .sources_file import FileSource


class NpySource(FileSource):
    """An array in a `.npy` file: `(H, W)`, `(C, H, W)` or `(H, W, C)` with 1 to 4 channels; no objects.

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
