"""Images with a class for each pixel, from wherever they are."""

from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset
from transformers.image_processing_utils import BaseImageProcessor

from ..model.image_loading import upright
from .arguments import DataArguments
from .augmentation import seeded
from .images import decode_image, prepare_images
from .loading import check_validation_share, hold_out
from .sources import MEGAPIXEL_DIGITS, SPLIT_NAMES, load_splits


MASK_COLUMNS = ("mask", "masks", "annotation", "annotations", "segmentation", "label", "labels")
IGNORED = 255


class MaskedImages(Dataset):
    """Images and their masks, read when they are asked for: `image` (a PIL image) and `mask` `(H, W)` uint8.

    Args:
        rows: where they are.
        image_column, mask_column: columns of `rows`.
        binary: whether all classes but 0 count as class 1.
        horizontal_flip: probability of mirroring both, a function of seed, epoch and index alone.
        seed: of that.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        image_column: str,
        mask_column: str,
        binary: bool = False,
        horizontal_flip: float = 0.0,
        seed: int = 0,
    ):
        self.rows = rows
        self.image_column = image_column
        self.mask_column = mask_column
        self.binary = binary
        self.horizontal_flip = horizontal_flip
        self.seed = seed
        # In shared memory, because workers that outlive an epoch hold a copy of everything else.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose what is drawn; see `ReproducibleTraining`."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        # Upright, as image processors make it, before both are mirrored.
        image = upright(decode_image(row[self.image_column]))
        mask = self._read_mask(row, index)
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"Mask {index} has {mask.shape[0]}x{mask.shape[1]} pixels, and its image {image.height}x{image.width}."
            )
        with seeded(self.seed, int(self._epoch), index):
            if self.horizontal_flip and torch.rand(()) < self.horizontal_flip:
                image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
                mask = np.ascontiguousarray(mask[:, ::-1])
        return {"image": image, "mask": mask}

    def read_mask(self, index: int) -> np.ndarray:
        """`(H, W)` uint8, without the image.

        Raises:
            ValueError: if it is damaged, or has several channels.
        """
        return self._read_mask(self.rows.select_columns(self.mask_column)[index], index)

    def _read_mask(self, row: dict[str, Any], index: int) -> np.ndarray:
        mask = np.asarray(upright(decode_image(row[self.mask_column])))
        if mask.ndim != 2 or mask.min() < 0 or mask.max() > IGNORED:
            raise ValueError(
                f"Mask {index} must have one channel of classes from 0 to {IGNORED} (which is ignored), not the shape "
                f"{mask.shape} with values from {mask.min()} to {mask.max()}."
            )
        mask = mask.astype(np.uint8)
        if self.binary:
            mask = np.where(mask == IGNORED, mask, (mask > 0).astype(np.uint8))
        return mask


def load_masked_images(data: DataArguments, binary: bool) -> tuple[dict[str, MaskedImages], list[str]]:
    """Splits of images with masks, and names of their classes.

    The columns are those of `data`, `label_column` for the masks, or found: masks by the names of `MASK_COLUMNS`. An
    image folder has masks where its metadata file has a column `mask_file_name` beside `file_name`. Where the names of
    classes are not known they are numbers, up to the highest in the masks of `train`, all of which are read for that.

    Raises:
        FileNotFoundError: if there is nothing at that path.
        ValueError: for columns that are missing or ambiguous, or masks of one class.
    """
    check_validation_share(data.validation_share)
    loaded = load_splits(data.dataset, data.dataset_options)
    names = None
    if data.dataset == MEGAPIXEL_DIGITS:
        from ..data.digit_masks import MASK_NAMES, add_masks

        loaded, names = add_masks(datasets.DatasetDict(loaded)), MASK_NAMES
    columns = find_columns(next(iter(loaded.values())), data.image_column, data.label_column)
    splits = {}
    for split, rows in loaded.items():
        for column in columns:
            # Not its subclasses, which draw their images.
            if type(rows.features[column]) is datasets.Image:
                rows = rows.cast_column(column, datasets.Image(decode=False))
        splits[split] = rows
    if "train" in splits and "validation" not in splits and data.validation_share:
        kept, held_out = hold_out(
            np.zeros(len(splits["train"]), np.int64), data.validation_share, data.validation_seed
        )
        splits |= {"validation": splits["train"].select(held_out), "train": splits["train"].select(kept)}
    masked = {
        name: MaskedImages(splits[name], *columns, binary=binary) for name in SPLIT_NAMES if name in splits
    }
    if binary:
        return masked, ["background", "foreground"]
    if names is None:
        examples = masked.get("train") or next(iter(masked.values()))
        highest = 0
        for index in range(len(examples)):
            mask = examples.read_mask(index)
            highest = max(highest, int(mask[mask != IGNORED].max(initial=0)))
        if not highest:
            raise ValueError("all masks are of class 0: there is nothing to tell apart")
        names = [str(number) for number in range(highest + 1)]
    return masked, names


def find_columns(
    rows: datasets.Dataset, image_column: str | None, mask_column: str | None
) -> tuple[str, str]:
    """The columns of images and of masks: those named, or those that can be nothing else.

    Raises:
        ValueError: if it is not clear which.
    """
    pictures = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    for option, name in (("image_column", image_column), ("label_column", mask_column)):
        if name is not None and name not in pictures:
            raise ValueError(
                f"{option} is {name!r}, and the columns that hold images are {', '.join(pictures) or 'none'}"
            )
    if mask_column is None:
        mask_column = next((name for name in MASK_COLUMNS if name in pictures), None)
    others = [name for name in pictures if name != mask_column]
    if mask_column is None or (image_column is None and len(others) != 1):
        raise ValueError(
            f"name the columns of images and masks with image_column and label_column; those that hold images are "
            f"{', '.join(pictures) or 'none'}. A folder of images says which mask belongs to which by a metadata.csv with "
            "the columns file_name and mask_file_name"
        )
    return image_column or others[0], mask_column


class MaskCollator:
    """Prepares and stacks images, and masks as labels `(B, H, W)` int64 of the size that images are resized to."""

    def __init__(self, image_processor: BaseImageProcessor):
        size = image_processor.size if image_processor.do_resize else {}
        if image_processor.do_resize and "height" not in size:
            raise ValueError(
                "Masks are resized as images are, to a height and width: give image_size or native_resolution, not "
                "longest_edge."
            )
        self.image_processor = image_processor
        self.size = (size["width"], size["height"]) if size else None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = prepare_images(self.image_processor, [example["image"] for example in examples])
        masks = [example["mask"] for example in examples]
        if self.size is not None:
            nearest = PIL.Image.Resampling.NEAREST
            masks = [np.asarray(PIL.Image.fromarray(mask).resize(self.size, nearest)) for mask in masks]
        if len({mask.shape for mask in masks}) > 1:
            raise ValueError(
                f"Images of one batch have one size, got {sorted({mask.shape for mask in masks})}: give image_size, or "
                "batches of one image."
            )
        return batch | {"labels": torch.from_numpy(np.stack(masks)).long()}
