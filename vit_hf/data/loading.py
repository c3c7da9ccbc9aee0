"""Labeled images from folders, files and the Hub."""

from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from ..arguments import DataArguments
from .image_folders import SPLIT_NAMES
from .images import check_header, decode_image
from .labels import EncodedLabels, encode_labels
from .sources import find_image_column, find_label_column, load_splits


@dataclass
class LabeledImages:
    """One split: images, decoded on access, and their labels.

    Attributes:
        rows: the rows that hold the images.
        image_column: the column of `rows` that holds them, files not yet decoded.
        labels: `(N,)` int64 classes, `(N, num_labels)` float32 of 0 and 1, or float32 values.
    """

    rows: datasets.Dataset
    image_column: str
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> PIL.Image.Image:
        """Decodes one image.

        Raises:
            ValueError: naming the file, if it is damaged.
        """
        return decode_image(self.rows[index][self.image_column])

    def select(self, indices: np.ndarray) -> "LabeledImages":
        """The rows with these indices."""
        return LabeledImages(self.rows.select(indices), self.image_column, self.labels[indices])


@dataclass
class ImageDataset:
    """Splits of labeled images, and the meaning of the labels.

    Attributes:
        splits: by name, some of "train", "validation" and "test".
        problem_type: as in a model's config.
        num_labels: outputs that a model needs.
        id2label, label2id: names of the classes; empty for a regression.
        skipped: why, for each damaged image that was left out.
        notes: a line about each other kind of unused data.
    """

    splits: dict[str, LabeledImages]
    problem_type: str
    num_labels: int
    id2label: dict[int, str]
    label2id: dict[str, int]
    skipped: list[str]
    notes: list[str] = field(default_factory=list)

    def describe_left_out(self) -> list[str]:
        """Returns lines for the user about all unused data."""
        return [*self.notes, *(f"left out: {reason}" for reason in self.skipped)]


def load_image_dataset(
    name_or_path: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    label2id: dict[str, int] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    skip_corrupt: bool = False,
    options: dict[str, Any] | None = None,
) -> ImageDataset:
    """Loads labeled images, and holds out a validation split if there is none.

    Image files are opened once, to find damaged ones before training does.

    Args:
        name_or_path: a folder of images (a subfolder for each class, or a metadata file; optionally under
            `train`, `validation` and `test`), a folder written by `save_to_disk`, a parquet, CSV or JSON file
            or a folder of them, the name of a data set on the Hub, or "megapixel_digits".
        image_column: the column of images, by default the only one there is.
        label_column: the column of labels, by default `label` or `labels`, or the only other column.
        label2id: classes of a model that the labels have to fit.
        validation_fraction: fraction of each class in `train` that becomes `validation` if the data have
            none. 0 for none.
        seed: seed of that draw.
        skip_corrupt: leave damaged images out instead of failing; decodes every image once.
        options: for `datasets.load_dataset`, or for `vit_hf.data.megapixel_digits`.

    Raises:
        FileNotFoundError: if there is nothing at that path.
        ValueError: for data without rows, columns that are missing or ambiguous, labels that are missing, of
            a single class or unknown to the model, or a damaged image, which is named.
    """
    check_validation_fraction(validation_fraction)
    loaded = load_splits(name_or_path, options or {}, has_classes=True)
    splits = loaded.splits
    first = next(iter(splits.values()))
    image_column = find_image_column(first, image_column)
    label_column = find_label_column(first, label_column, image_column)
    columns = {name: rows.select_columns(label_column)[:][label_column] for name, rows in splits.items()}
    # The test split of a competition comes without labels: None, or -1.
    if "test" in columns and len(columns) > 1 and set(map(str, columns["test"])) <= {"None", "-1"}:
        loaded.notes.append(
            f"left out: the test split, none of whose {len(splits['test'])} images has a label"
        )
        del splits["test"], columns["test"]
    encoded = encode_labels(first.features[label_column], columns, label2id, loaded.row_names)

    skipped: list[str] = []
    return ImageDataset(
        splits=_open_splits(
            splits, image_column, encoded.splits, validation_fraction, seed, skip_corrupt, skipped
        ),
        problem_type=encoded.problem_type,
        num_labels=encoded.num_labels,
        id2label=dict(enumerate(encoded.names)),
        label2id={name: number for number, name in enumerate(encoded.names)},
        skipped=skipped,
        notes=loaded.notes + _notes_of_classes(encoded),
    )


def _notes_of_classes(encoded: EncodedLabels) -> list[str]:
    """Notes classes that only held-out splits have, and class names that differ only in case or spaces."""
    notes = []
    if encoded.problem_type == "single_label_classification" and "train" in encoded.splits:
        present = {
            split: {encoded.names[number] for number in np.unique(labels)}
            for split, labels in encoded.splits.items()
        }
        unseen = sorted(set().union(*present.values()) - present["train"])
        if unseen:
            notes.append(f"no image of train is of {_listed(unseen)}, which other splits have")
    alike: dict[str, list[str]] = {}
    for name in encoded.names:
        alike.setdefault(" ".join(name.lower().split()), []).append(name)
    notes += [f"classes of nearly one name: {_listed(names)}" for names in alike.values() if len(names) > 1]
    return notes


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return (
        f"{len(names)} classes ({shown}{', ...' if len(names) > 5 else ''})"
        if len(names) > 1
        else f"the class {shown}"
    )


def load_unlabeled(
    name_or_path: str,
    *,
    image_column: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    skip_corrupt: bool = False,
    options: dict[str, Any] | None = None,
) -> tuple[dict[str, LabeledImages], list[str]]:
    """Loads the images of `load_image_dataset` without their labels: all labels are 0.

    Returns:
        Splits, and what was left out, a line each.

    Raises:
        FileNotFoundError, ValueError: as `load_image_dataset`, but for labels.
    """
    check_validation_fraction(validation_fraction)
    loaded = load_splits(name_or_path, options or {})
    splits = loaded.splits
    image_column = find_image_column(next(iter(splits.values())), image_column)
    labels = {name: np.zeros(len(rows), np.int64) for name, rows in splits.items()}
    skipped: list[str] = []
    opened = _open_splits(splits, image_column, labels, validation_fraction, seed, skip_corrupt, skipped)
    return opened, [*loaded.notes, *(f"left out: {reason}" for reason in skipped)]


def check_validation_fraction(fraction: float) -> None:
    """Raises: ValueError if it is outside [0, 1)."""
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction is {fraction}; it must be at least 0 and below 1")


def _open_splits(
    splits: dict[str, datasets.Dataset],
    image_column: str,
    labels: dict[str, np.ndarray],
    validation_fraction: float,
    seed: int,
    skip_corrupt: bool,
    skipped: list[str],
) -> dict[str, LabeledImages]:
    """Drops damaged images, recorded in `skipped`, and holds out a validation split."""
    labeled = {}
    for name, rows in splits.items():
        rows = rows.select_columns(image_column)
        # Not its subclasses, which draw their images.
        is_encoded = type(rows.features[image_column]) is datasets.Image
        if is_encoded:
            # Not decoded by `datasets`, so that a damaged file can be named.
            rows = rows.cast_column(image_column, datasets.Image(decode=False))
        labeled[name] = LabeledImages(rows, image_column, labels[name])
        if is_encoded and (skip_corrupt or rows[0][image_column]["bytes"] is None):
            labeled[name] = _check_images(labeled[name], name, skip_corrupt, skipped)
    if "train" in labeled and "validation" not in labeled and validation_fraction:
        kept, held_out = hold_out(labeled["train"].labels, validation_fraction, seed)
        labeled["validation"] = labeled["train"].select(held_out)
        labeled["train"] = labeled["train"].select(kept)
    return {name: labeled[name] for name in SPLIT_NAMES if name in labeled}


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a validation split with the same fraction of every class.

    A class of at least two images gives at least one and keeps at least one; a lone image stays. Labels that
    are no classes are drawn from as a whole.

    Args:
        labels: `(N,)` classes, or anything else of length N.
        fraction: fraction to hold out.
        seed: seed of the draw.

    Returns:
        Ascending indices of what stays, and of what is held out.

    Raises:
        ValueError: if nothing could be held out.
    """
    generator = np.random.default_rng(seed)
    classes = labels if labels.dtype == np.int64 else np.zeros(len(labels), np.int64)
    held_out = []
    for number in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == number))
        num_held = max(1, round(fraction * len(members)))
        held_out.extend(members[: min(num_held, len(members) - 1)])
    if not held_out:
        raise ValueError(
            f"no class has two images, so that none of the {len(labels)} can be held out for validation: add "
            "images, give a validation split, or set validation_fraction to 0 and eval_strategy to 'no'"
        )
    mask = np.zeros(len(labels), bool)
    mask[held_out] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def _check_images(split: LabeledImages, name: str, skip_corrupt: bool, skipped: list[str]) -> LabeledImages:
    """Fails at the first damaged image, or leaves all of them out and appends the reasons to `skipped`."""
    readable = []
    for index in tqdm(range(len(split)), f"Checking images ({name})", leave=False, delay=1):
        try:
            if skip_corrupt:
                split.read(index)
            else:
                check_header(split.rows[index][split.image_column]["path"])
        except ValueError as error:
            if not skip_corrupt:
                raise ValueError(f"{error} Or set skip_corrupt to leave such images out.") from error
            skipped.append(str(error))
        else:
            readable.append(index)
    if not readable:
        raise ValueError(f"not one image of the {name} split can be read")
    return split if len(readable) == len(split) else split.select(np.array(readable))


def load_data(arguments: DataArguments, **changes: Any) -> ImageDataset:
    """Loads the data that `arguments` name; `changes` override arguments of `load_image_dataset`."""
    options = {
        "image_column": arguments.image_column,
        "label_column": arguments.label_column,
        "validation_fraction": arguments.validation_fraction,
        "seed": arguments.validation_seed,
        "skip_corrupt": arguments.skip_corrupt,
    }
    # dataset_options may have a seed of its own, of the digits.
    return load_image_dataset(arguments.dataset, **(options | changes), options=arguments.dataset_options)
