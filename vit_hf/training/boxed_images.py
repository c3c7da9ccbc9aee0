"""Images and the boxes on them, whole or in pieces."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset

from ..model.image_loading import as_picture
from .augmentation import seeded
from .box_arithmetic import Window, count_tiles, crop_boxes, flip_boxes, tile
from .images import decode_image


@dataclass
class BoxedImages:
    """One split: images that are read when they are asked for, and what is on them.

    Attributes:
        rows: where the images are.
        image_column: the column of `rows` that holds them.
        boxes: of each image `(T, 4)` float64: left, top, right, bottom in pixels of the upright image.
        classes: of each image `(T,)` int64.
        sizes: of each image (width, height).
    """

    rows: datasets.Dataset
    image_column: str
    boxes: list[np.ndarray]
    classes: list[np.ndarray]
    sizes: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.boxes)

    def read(self, index: int) -> PIL.Image.Image:
        """Decode one image, upright.

        Raises:
            ValueError: naming the file, if it is damaged.
        """
        image = decode_image(self.rows[index][self.image_column])
        # A palette's first color need not be black, which is what pieces are filled with.
        try:
            return as_picture(image)
        except ValueError as error:
            raise ValueError(
                f"Cannot use the image {getattr(image, 'filename', '') or index}: {error}"
            ) from error

    def select(self, indices: np.ndarray) -> "BoxedImages":
        """The images with these indices."""
        parts = ([values[i] for i in indices] for values in (self.boxes, self.classes, self.sizes))
        return BoxedImages(self.rows.select(indices), self.image_column, *parts)

    @property
    def num_boxes(self) -> int:
        return sum(map(len, self.boxes))


class BoxExamples(Dataset):
    """Images for a `Trainer`: `image` (a PIL image), `boxes` `(T, 4)`, `classes` `(T,)` and `image_id`.

    With `crop_size`, an image gives as many pieces as tiles of that size cover it; an image that is smaller is filled up
    with black on the right and at the bottom, so that all pieces have one size.

    Args:
        images: what to read.
        crop_size: pixels a side of pieces; None for whole images.
        least_share: of a box that must be on a piece for it to count there.
        random: whether pieces are anywhere in their image, a function of seed, epoch and index; otherwise they are the
            tiles of it, which may overlap.
        horizontal_flip, vertical_flip: probabilities of mirroring.
        seed: of what is random.
    """

    def __init__(
        self,
        images: BoxedImages,
        crop_size: int | None = None,
        least_share: float = 0.25,
        random: bool = False,
        horizontal_flip: float = 0.0,
        vertical_flip: float = 0.0,
        seed: int = 0,
    ):
        self.images = images
        self.crop_size = crop_size
        self.least_share = least_share
        self.random = random
        self.flips = (horizontal_flip, vertical_flip)
        self.seed = seed
        counts = [1] * len(images)
        if crop_size is not None:
            counts = [int(np.prod(count_tiles(*size, crop_size))) for size in images.sizes]
        self.ends = np.array(list(accumulate(counts)))
        # In shared memory, because workers that outlive an epoch hold a copy of everything else.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose what is drawn; see `ReproducibleTraining`."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.ends, index, side="right"))
        piece = index - int(self.ends[number - 1] if number else 0)
        image, boxes, classes = (
            self.images.read(number),
            self.images.boxes[number],
            self.images.classes[number],
        )
        with seeded(self.seed, int(self._epoch), index):
            if self.crop_size is not None:
                window = self._window(image.size, piece)
                image = image.crop(window)
                boxes, stay = crop_boxes(boxes, window, self.least_share)
                classes = classes[stay]
            for axis, turn in enumerate(
                (PIL.Image.Transpose.FLIP_LEFT_RIGHT, PIL.Image.Transpose.FLIP_TOP_BOTTOM)
            ):
                if self.flips[axis] and torch.rand(()) < self.flips[axis]:
                    image, boxes = image.transpose(turn), flip_boxes(boxes, image.size[axis], axis)
        return {"image": image, "boxes": boxes, "classes": classes, "image_id": number}

    def _window(self, size: tuple[int, int], piece: int) -> Window:
        side = self.crop_size
        if not self.random:
            return tile(piece, *size, side)
        left, top = (int(torch.randint(max(0, length - side) + 1, ())) for length in size)
        return left, top, left + side, top + side
