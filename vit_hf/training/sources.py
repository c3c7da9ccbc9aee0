"""Finding data: folders, files, the Hub, and the columns in them."""

from pathlib import Path
from typing import Any

import datasets
import PIL.Image

from .images import IMAGE_SUFFIXES


MEGAPIXEL_DIGITS = "megapixel_digits"

# What a split may be called, in a data set or as a folder.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
LABEL_COLUMNS = ("label", "labels", "fine_label")
# Formats of single files, by ending.
FILE_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


def load_splits(name_or_path: str, options: dict[str, Any]) -> dict[str, datasets.Dataset]:
    """Load whatever `name_or_path` stands for (see `load_image_dataset`), its splits named as in `SPLIT_NAMES`.

    Raises:
        FileNotFoundError: if there is nothing at that path.
        ValueError: if there is something, but no data set with rows.
    """
    try:
        loaded = _load(name_or_path, options)
    except ValueError as error:
        # What `datasets` says of a file without rows, in its own terms.
        if "corresponds to no data" in str(error):
            raise ValueError(f"{name_or_path} has no rows, or one of its splits has none") from error
        raise
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    splits = {}
    for split, names in SPLIT_NAMES.items():
        found = [name for name in names if name in loaded]
        if found:
            splits[split] = loaded[found[0]]
            if not len(splits[split]):
                raise ValueError(f"the {split} split of {name_or_path} has no rows")
    if not splits:
        raise ValueError(
            f"{name_or_path} has the splits {', '.join(loaded)}; name them train, validation or test"
        )
    return splits


def _load(name_or_path: str, options: dict[str, Any]) -> datasets.DatasetDict | datasets.Dataset:
    if name_or_path == MEGAPIXEL_DIGITS:
        # Here, because its digits come with a library that other data do not need.
        from ..data import megapixel_digits

        return megapixel_digits(**options)
    path = Path(name_or_path).expanduser()
    if path.is_file():
        if path.suffix not in FILE_FORMATS:
            raise ValueError(f"{path} is no data set; single files may end in {', '.join(FILE_FORMATS)}")
        return datasets.load_dataset(FILE_FORMATS[path.suffix], data_files=str(path), **options)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return datasets.load_from_disk(str(path), **options)
    if path.is_dir():
        if any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.rglob("*")):
            return _load_image_folder(path, options)
        if any(file.suffix in FILE_FORMATS for file in path.rglob("*")):
            return datasets.load_dataset(str(path), **options)
        raise ValueError(f"the folder {path} has no images in it, and no parquet, CSV or JSON files")
    if name_or_path.startswith((".", "/", "~")) or name_or_path.endswith("/") or name_or_path.count("/") > 1:
        raise FileNotFoundError(f"there is no file or folder {path}")
    try:
        return datasets.load_dataset(name_or_path, **options)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"there is no folder {name_or_path} here, and the Hub gave no such data set ({error})"
        ) from error


def _load_image_folder(path: Path, options: dict[str, Any]) -> datasets.DatasetDict:
    folders = [folder.name for folder in sorted(path.iterdir()) if folder.is_dir()]
    aliases = {alias: split for split, names in SPLIT_NAMES.items() for alias in names}
    # Left to itself `datasets` looks for "train" or "test" anywhere in a path, and would take a class folder
    # "train-station" for the training split and drop all other classes.
    if folders and all(name in aliases for name in folders):
        files = {aliases[name]: f"{name}/**" for name in folders}
    else:
        files = {"train": "**"}
    return datasets.load_dataset("imagefolder", data_dir=str(path), **({"data_files": files} | options))


def find_image_column(rows: datasets.Dataset, wanted: str | None) -> str:
    """The column of images: the one named, or the only one there is.

    Raises:
        ValueError: if there is none, or more than one.
    """
    if wanted is not None:
        if wanted not in rows.column_names:
            raise ValueError(
                f"there is no image column {wanted!r}; the data have {', '.join(rows.column_names)}"
            )
        return wanted
    found = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if not found:
        # Features of other packages decode to an image as well.
        found = [name for name, value in rows[0].items() if isinstance(value, PIL.Image.Image)]
    if len(found) != 1:
        raise ValueError(
            f"{'several columns hold' if found else 'no column holds'} images; name the right one of "
            f"{', '.join(rows.column_names)} with image_column"
        )
    return found[0]


def find_label_column(rows: datasets.Dataset, wanted: str | None, image_column: str) -> str:
    """The column of labels: the one named, or one of `LABEL_COLUMNS`, or the only one beside the images.

    Raises:
        ValueError: if there is none, or it is not clear which.
    """
    others = [name for name in rows.column_names if name != image_column]
    if wanted is not None:
        if wanted not in others:
            raise ValueError(
                f"there is no label column {wanted!r}; the data have {', '.join(others) or 'none'}"
            )
        return wanted
    if not others:
        raise ValueError(
            "the images have no labels: put each class in a folder of its own (two at least), or add a metadata file"
        )
    usual = [name for name in LABEL_COLUMNS if name in others]
    if not usual and len(others) > 1:
        raise ValueError(f"name the labels with label_column; the data have {', '.join(others)}")
    return (usual or others)[0]
