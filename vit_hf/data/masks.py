"""Images with a class for each pixel, from folders, files and the Hub."""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers.image_processing_utils import BaseImageProcessor

from ..arguments import MEGAPIXEL_DIGITS, DataArguments
from ..model.image_loading import upright
from .augmentation import seeded
from .image_folders import SPLIT_NAMES
from .images import decode_image, prepare_images, upright_size
from .loading import check_validation_fraction, hold_out
from .sources import load_splits


MASK_COLUMNS = ("mask", "masks", "annotation", "annotations", "segmentation", "label", "labels")
IGNORED = 255


@dataclass
class MaskValues:
    """Maps the values of masks to classes.

    Attributes:
        binary: whether all classes but 0 count as class 1.
        ignored: the value of pixels that do not count; None if all count.
    """

    binary: bool = False
    ignored: int | None = IGNORED

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """Classes `(H, W)` uint8, with `IGNORED` where pixels do not count."""
        classes = (mask > 0).astype(np.uint8) if self.binary else mask
        return classes if self.ignored is None else np.where(mask == self.ignored, np.uint8(IGNORED), classes)


class MaskedImages(Dataset):
    """Images and their masks, decoded on access: `image` (a PIL image) and `mask` `(H, W)` uint8.

    Args:
        rows: the rows that hold them.
        image_column, mask_column: columns of `rows`.
        values: meaning of the mask values.
        row_names: names of the rows in errors; by default the mask's file.
        horizontal_flip: probability of mirroring both, a function of seed, epoch and index alone.
        seed: seed of the mirroring.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        image_column: str,
        mask_column: str,
        values: MaskValues | None = None,
        row_names: list[str] | None = None,
        horizontal_flip: float = 0.0,
        seed: int = 0,
    ):
        self.rows = rows
        self.image_column = image_column
        self.mask_column = mask_column
        self.values = values or MaskValues()
        self.row_names = row_names
        self.horizontal_flip = horizontal_flip
        self.seed = seed
        # In shared memory, because workers that outlive an epoch hold a copy of everything else.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that draws depend on; see `ReproducibleTraining`."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        # Upright, as image processors make it, before both are mirrored.
        image = upright(decode_image(row[self.image_column]))
        mask = self._read_mask(row, index)
        self._check_size(mask, (image.width, image.height), row, index)
        with seeded(self.seed, int(self._epoch), index):
            if self.horizontal_flip and torch.rand(()) < self.horizontal_flip:
                image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
                mask = np.ascontiguousarray(mask[:, ::-1])
        return {"image": image, "mask": mask}

    def check_mask(self, index: int) -> np.ndarray:
        """Counts the pixels of each value in a mask, `(256,)`, before values are mapped to classes.

        Raises:
            ValueError: naming it, if there is none, or it is damaged, has several channels, or another size
                than its image.
        """
        row = self.rows[index]
        mask = self._read_values(row, index)
        image = row[self.image_column]
        if isinstance(image, dict):
            self._check_size(mask, upright_size(image, self.row_name(index, row)), row, index)
        return np.bincount(mask.ravel(), minlength=256)

    def row_name(self, index: int, row: dict[str, Any]) -> str:
        """Names a row in errors."""
        if self.row_names is not None:
            return self.row_names[index]
        source = row[self.mask_column]
        return (source.get("path") if isinstance(source, dict) else None) or f"mask {index}"

    def _check_size(self, mask: np.ndarray, size: tuple[int, int], row: dict[str, Any], index: int) -> None:
        if mask.shape[::-1] != size:
            raise ValueError(
                f"{self.row_name(index, row)}: the mask has {mask.shape[1]}x{mask.shape[0]} pixels, and its "
                f"image {size[0]}x{size[1]}; both must be of one size"
            )

    def _read_mask(self, row: dict[str, Any], index: int) -> np.ndarray:
        return self.values(self._read_values(row, index))

    def _read_values(self, row: dict[str, Any], index: int) -> np.ndarray:
        if row[self.mask_column] is None:
            raise ValueError(f"{self.row_name(index, row)} has no mask: give one, or take the row out")
        mask = np.asarray(upright(decode_image(row[self.mask_column])))
        if mask.ndim != 2 or mask.min() < 0 or mask.max() > 255 or (mask != mask.astype(np.uint8)).any():
            raise ValueError(
                f"{self.row_name(index, row)}: a mask must have one channel of whole numbers from 0 to 255, "
                f"not the shape {mask.shape} with values from {mask.min()} to {mask.max()}"
            )
        return mask.astype(np.uint8)


@dataclass
class MaskData:
    """Splits of images with masks.

    Attributes:
        splits: by name, some of "train", "validation" and "test".
        names: class names.
        notes: lines for the user about unused data and ignored pixels.
    """

    splits: dict[str, MaskedImages]
    names: list[str]
    notes: list[str]


def load_masked_images(data: DataArguments, binary: bool, ignore_label: int | str = "auto") -> MaskData:
    """Loads images with masks, each of which is read once, and the class names.

    The columns are those of `data`, `label_column` for the masks, or found: masks by the names of
    `MASK_COLUMNS`. An image folder has masks where its metadata file has a column `mask_file_name` beside
    `file_name`. Where the names of classes are not known they are numbers, up to the highest in any mask.

    Args:
        data: the data to load.
        binary: whether all classes but 0 count as class 1.
        ignore_label: the value of pixels that do not count: a number, "none", or "auto", which is 255 unless
            masks are black and white.

    Raises:
        FileNotFoundError: if there is nothing at that path.
        ValueError: for columns that are missing or ambiguous, masks of one class, damaged ones, and those
            whose 255 may mean a class as well as pixels that do not count.
    """
    check_validation_fraction(data.validation_fraction)
    # Folders below mean nothing for masks.
    loaded = load_splits(data.dataset, data.dataset_options, has_classes=None)
    found, names = loaded.splits, None
    if data.dataset == MEGAPIXEL_DIGITS:
        from .digits import MASK_NAMES, add_digit_masks

        found, names = add_digit_masks(datasets.DatasetDict(found)), MASK_NAMES
    columns = find_columns(next(iter(found.values())), data.image_column, data.label_column)
    splits, counts = {}, {}
    for split, rows in found.items():
        for column in columns:
            if column not in rows.column_names:
                raise ValueError(
                    f"the {split} split has no column {column}; it has {', '.join(rows.column_names)}"
                )
            # Not its subclasses, which draw their images.
            if type(rows.features[column]) is datasets.Image:
                rows = rows.cast_column(column, datasets.Image(decode=False))
        splits[split] = MaskedImages(rows, *columns, row_names=loaded.row_names.get(split))
        if names is None:
            indices = tqdm(range(len(rows)), f"Checking masks ({split})", leave=False, delay=1)
            counts[split] = sum(splits[split].check_mask(index) for index in indices)
    notes = list(loaded.notes)
    if names is not None:
        values = MaskValues(binary, IGNORED)
    else:
        values = MaskValues(binary, find_ignored(sum(counts.values()), binary, ignore_label))
        names = _find_classes(counts, values, notes)
    if binary:
        names = ["background", "foreground"]
    for images in splits.values():
        images.values = values
    if "train" in splits and "validation" not in splits and data.validation_fraction:
        images = splits["train"]
        parts = hold_out(np.zeros(len(images), np.int64), data.validation_fraction, data.validation_seed)
        splits["train"], splits["validation"] = (
            MaskedImages(
                images.rows.select(part),
                *columns,
                values,
                None if images.row_names is None else [images.row_names[index] for index in part],
            )
            for part in parts
        )
    return MaskData({name: splits[name] for name in SPLIT_NAMES if name in splits}, names, notes)


def find_ignored(counts: np.ndarray, binary: bool, ignore_label: int | str) -> int | None:
    """Returns the mask value of pixels to ignore.

    Args:
        counts: `(256,)`, how many pixels have each value.
        binary: whether all classes but 0 count as class 1.
        ignore_label: see `load_masked_images`.

    Raises:
        ValueError: if 255 may be a class and `ignore_label` is "auto".
    """
    if ignore_label == "none":
        ignored = None
    elif ignore_label != "auto":
        ignored = int(ignore_label)
    else:
        others = np.flatnonzero(counts[1:IGNORED]) + 1
        shown = ", ".join(map(str, np.flatnonzero(counts)[:8])) + (
            ", ..." if np.count_nonzero(counts) > 8 else ""
        )
        if not counts[IGNORED]:
            return IGNORED
        if not len(others):
            if binary:
                return None
            raise ValueError(
                f"all pixels of the masks are {shown}, and 255 would be ignored, so that there would be one "
                "class only. Set binary to take 255 for the foreground"
            )
        # Classes are numbered one by one; drawings and their soft edges have shades.
        if others[-1] > 191 or len(others) * 8 < others[-1]:
            foreground = (
                "'none' with binary takes it for foreground"
                if not binary
                else "'none' takes it for foreground"
            )
            raise ValueError(
                f"the masks have the values {shown} and 255, which look like shades rather than class "
                f"numbers, so 255 may be a class. Set ignore_label: 255 ignores such pixels, {foreground}; "
                "or save masks with classes 0, 1, 2 and so on"
            )
        return IGNORED
    if not binary and ignored != IGNORED and counts[IGNORED]:
        raise ValueError(
            f"ignore_label is {ignore_label}, so that 255 is a class, and classes go from 0 to 254: set "
            "binary to take all but 0 for one class, or save the masks with other numbers"
        )
    return ignored


def _find_classes(counts: dict[str, np.ndarray], values: MaskValues, notes: list[str]) -> list[str]:
    """Names the classes up to the highest in any split; notes ignored pixels, and classes that `train`
    lacks."""
    total = sum(counts.values())
    if values.ignored is not None and total[values.ignored]:
        fraction = total[values.ignored] / total.sum()
        notes.append(
            f"left out: {fraction:.2%} of all pixels, which have the value {values.ignored} (ignore_label)"
        )
    present = {
        split: set(np.flatnonzero(found).tolist()) - {values.ignored} for split, found in counts.items()
    }
    if values.binary:
        present = {split: {int(value > 0) for value in found} for split, found in present.items()}
    classes = set().union(*present.values())
    if len(classes) < 2:
        raise ValueError(
            f"all {'pixels that count ' if values.ignored is not None and total[values.ignored] else ''}of "
            f"the masks are of class {', '.join(map(str, classes)) or 'none'}: training needs at least two "
            "classes"
        )
    if "train" in present and (unseen := sorted(classes - present["train"])):
        notes.append(
            f"no mask of train has the classes {', '.join(map(str, unseen))}, which other splits have"
        )
    return [str(number) for number in range(max(classes) + 1)]


def find_columns(
    rows: datasets.Dataset, image_column: str | None, mask_column: str | None
) -> tuple[str, str]:
    """Finds the columns of images and masks: those named, or the only candidates.

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
            "name the columns of images and masks with image_column and label_column; those that hold "
            f"images are {', '.join(pictures) or 'none'}. A folder of images needs a metadata.csv with the "
            "columns file_name and mask_file_name"
        )
    return image_column or others[0], mask_column


class MaskCollator:
    """Prepares and stacks images, with masks as labels `(B, H, W)` int64 at the images' new size."""

    def __init__(self, image_processor: BaseImageProcessor):
        size = image_processor.size if image_processor.do_resize else {}
        if image_processor.do_resize and "height" not in size:
            raise ValueError(
                "Masks are resized as images are, to a height and width: give image_size or "
                "native_resolution, not longest_edge."
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
                f"Images of one batch have one size, got {sorted({mask.shape for mask in masks})}: give "
                "image_size, or batches of one image."
            )
        return batch | {"labels": torch.from_numpy(np.stack(masks)).long()}
