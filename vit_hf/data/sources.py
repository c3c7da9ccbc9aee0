"""Finds data in folders, files and on the Hub, and the columns in them."""

import glob
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import PIL.Image

from ..arguments import MEGAPIXEL_DIGITS
from .image_folders import (
    BESIDE_FILE,
    NO_METADATA,
    OTHER_SPLIT,
    OTHER_TABLE,
    REGIONS_ONLY,
    SPLIT_NAMES,
    SPLIT_OF,
    UNKNOWN,
    FolderFile,
    ImageFolder,
    LeftOut,
    check_name,
    label_by_folder,
    scan_folder,
    show,
)
from .label_tables import FILE_COLUMN, Table, make_rows, name_images, read_table, type_columns


LABEL_COLUMNS = ("label", "labels", "fine_label")
# Formats of single files, by ending.
FILE_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


@dataclass
class LoadedSplits:
    """Splits of a data set, named as in `SPLIT_NAMES`.

    Attributes:
        splits: their rows.
        notes: lines for the user about unused data.
        row_names: for some splits, names of the rows in errors.
    """

    splits: dict[str, datasets.Dataset]
    notes: list[str] = field(default_factory=list)
    row_names: dict[str, list[str]] = field(default_factory=dict)


def load_splits(name_or_path: str, options: dict[str, Any], has_classes: bool | None = False) -> LoadedSplits:
    """Loads the data that `name_or_path` names (see `load_image_dataset`).

    Args:
        name_or_path: see `load_image_dataset`.
        options: for `datasets.load_dataset`, or for `vit_hf.data.megapixel_digits`.
        has_classes: whether folders of images are classes: True, False for images without labels, None where
            folders other than splits mean nothing.

    Raises:
        FileNotFoundError: if there is nothing at that path.
        ValueError: if there is something, but no data set with rows.
    """
    try:
        loaded = _load(name_or_path, options, has_classes)
    except ValueError as error:
        # The message of `datasets` for a file without rows.
        if "corresponds to no data" in str(error):
            raise ValueError(f"{name_or_path} has no rows, or one of its splits has none") from error
        raise
    if isinstance(loaded, LoadedSplits):
        return loaded
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    splits, left_out = {}, LeftOut()
    for split, names in SPLIT_NAMES.items():
        found = [name for name in names if name in loaded]
        if found:
            splits[split] = loaded[found[0]]
            if not len(splits[split]):
                raise ValueError(f"the {split} split of {name_or_path} has no rows")
        for name in found[1:]:
            left_out.add(OTHER_SPLIT, name)
    if not splits:
        raise ValueError(
            f"{name_or_path} has the splits {', '.join(loaded)}; name them train, validation or test"
        )
    for name in loaded:
        if not any(name in names for names in SPLIT_NAMES.values()):
            left_out.add(OTHER_SPLIT, name)
    return LoadedSplits(splits, left_out.notes())


def _load(
    name_or_path: str, options: dict[str, Any], has_classes: bool | None
) -> LoadedSplits | datasets.DatasetDict | datasets.Dataset:
    if name_or_path == MEGAPIXEL_DIGITS:
        # Here, because its digits come with a library that other data do not need.
        from .megapixel_digits import megapixel_digits

        return megapixel_digits(**options)
    path = Path(name_or_path).expanduser()
    if path.is_file():
        if path.suffix.lower() not in FILE_FORMATS:
            raise ValueError(f"{path} is not a data set; single files may end in {', '.join(FILE_FORMATS)}")
        return _load_file(path, options)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return datasets.load_from_disk(str(path), **options)
    if path.is_dir():
        return _load_folder(path, options, has_classes)
    if name_or_path.startswith((".", "/", "~")) or name_or_path.endswith("/") or name_or_path.count("/") > 1:
        raise FileNotFoundError(f"there is no file or folder {path}")
    try:
        return datasets.load_dataset(name_or_path, **options)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"there is no folder {name_or_path} here, and the Hub gave no such data set ({error})"
        ) from error


def _load_file(path: Path, options: dict[str, Any]) -> LoadedSplits | datasets.DatasetDict | datasets.Dataset:
    """Loads a single file; text files by our reader, whose errors name file and line, unless there are
    options."""
    if path.suffix.lower() in (".parquet", ".arrow") or options:
        # A path may have characters that mean something in a pattern.
        files = glob.escape(str(path))
        return datasets.load_dataset(FILE_FORMATS[path.suffix.lower()], data_files=files, **options)
    table = read_table(path)
    if FILE_COLUMN in table.columns:
        named = name_images([table], path.parent)
        return LoadedSplits({"train": named.rows}, named.notes, {"train": named.row_names})
    rows, notes = _rows_of([table])
    return LoadedSplits({"train": rows}, notes, {"train": [table.row_name(i) for i in range(len(rows))]})


def _rows_of(tables: list[Table]) -> tuple[datasets.Dataset, list[str]]:
    """Merges the rows of tables; also returns notes of how they were read."""
    columns = list(dict.fromkeys(name for table in tables for name in table.columns))
    rows = [{name: row.get(name) for name in columns} for table in tables for row in table.rows]
    notes = type_columns(rows, tables, columns)
    return make_rows(rows, {}, tables), notes


def _load_folder(
    path: Path, options: dict[str, Any], has_classes: bool | None
) -> LoadedSplits | datasets.DatasetDict | datasets.Dataset:
    folder = scan_folder(path)
    if folder.images:
        if options:
            raise ValueError(
                f"dataset_options has {', '.join(options)}, and a folder of images takes no options: leave "
                "it out"
            )
        return _load_image_folder(folder, has_classes)
    if folder.tables:
        return _load_tables(folder, options)
    notes = folder.left_out.notes()
    raise ValueError(
        f"the folder {show(path)} has no images in "
        f"it{' that training reads' if REGIONS_ONLY in folder.left_out.names else ''}, and no parquet, CSV "
        f"or JSON files{f' ({notes[0]})' if notes else ''}"
    )


def _load_tables(
    folder: ImageFolder, options: dict[str, Any]
) -> LoadedSplits | datasets.DatasetDict | datasets.Dataset:
    """Loads tables of one format. Splits are folders, or words in file names ("train-0.parquet")."""
    if options.keys() & {"data_files", "data_dir", "name"}:
        return datasets.load_dataset(str(folder.path), **options)
    endings = {file.suffix.lower() for file in folder.tables}
    ending = next(ending for ending in FILE_FORMATS if ending in endings)
    for file in folder.tables:
        if file.suffix.lower() != ending:
            folder.left_out.add(OTHER_TABLE, file)
    found = folder.splits([file for file in folder.tables if file.suffix.lower() == ending], None)
    splits = {split: [file.path for file in files] for split, files in found.items()}
    if splits.keys() == {"train"}:
        splits = _splits_by_name(splits["train"], folder.left_out) or splits
    if ending in (".parquet", ".arrow") or options:
        files = {split: [glob.escape(str(file)) for file in found] for split, found in splits.items()}
        loaded = datasets.load_dataset(FILE_FORMATS[ending], data_files=files, **options)
        if not isinstance(loaded, datasets.DatasetDict):  # options may name a split
            return loaded
        return LoadedSplits(dict(loaded), folder.left_out.notes())
    tables = {split: [read_table(file) for file in files] for split, files in splits.items()}
    rows, notes = _rows_of([table for found in tables.values() for table in found])
    loaded, row_names, start = {}, {}, 0
    for split, found in tables.items():
        row_names[split] = [table.row_name(index) for table in found for index in range(len(table.rows))]
        loaded[split] = rows.select(range(start, start + len(row_names[split])))
        start += len(row_names[split])
    return LoadedSplits(loaded, notes + folder.left_out.notes(), row_names)


def _splits_by_name(files: list[Path], left_out: LeftOut) -> dict[str, list[Path]]:
    """Groups files by the split word in their name; if any has one, the others are left out."""
    splits: dict[str, list[Path]] = {}
    others = []
    for file in files:
        words = re.split(r"[-._ 0-9]+", file.stem.lower())
        split = next((SPLIT_OF[word] for word in words if word in SPLIT_OF), None)
        if split is None:
            others.append(file)
        else:
            splits.setdefault(split, []).append(file)
    if splits:
        for file in others:
            left_out.add(BESIDE_FILE, file)
    return splits


def _load_image_folder(folder: ImageFolder, has_classes: bool | None) -> LoadedSplits:
    """Loads a folder with images; labels and masks come from metadata files, else classes from folders."""
    if folder.metadata:
        return _load_metadata(folder)
    splits = folder.splits(folder.images, has_classes)
    for file in folder.tables:
        folder.left_out.add(UNKNOWN, file)
    labels = label_by_folder(splits, folder.left_out) if has_classes else None
    folder.note_empty(folder.images)
    names = sorted({label for found in (labels or {}).values() for label in found})
    features: dict[str, Any] = {"image": datasets.Image()}
    if labels is not None:
        features["label"] = datasets.ClassLabel(names=names)
    numbers = {name: number for number, name in enumerate(names)}
    loaded = {}
    for split, files in splits.items():
        if not files:
            raise ValueError(f"the {split} split of {show(folder.path)} has no image in a class folder")
        for file in files:
            check_name(file.path)
        columns: dict[str, list] = {"image": [str(file.path) for file in files]}
        if labels is not None:
            columns["label"] = [numbers[label] for label in labels[split]]
        loaded[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    return LoadedSplits(loaded, folder.left_out.notes())


def _load_metadata(folder: ImageFolder) -> LoadedSplits:
    named = name_images([read_table(file) for file in folder.metadata], folder.path)
    # Whatever folders an image is in, its labels are those of its row.
    splits: dict[str, list[FolderFile]] = folder.splits(named.images, None)
    index = {path: number for number, path in enumerate(named.images)}
    loaded, row_names = {}, {}
    for split, files in splits.items():
        chosen = [index[file.path] for file in files]
        loaded[split] = named.rows.select(chosen)
        row_names[split] = [named.row_names[number] for number in chosen]
    for path in folder.images:
        if path not in named.used:
            folder.left_out.add(NO_METADATA, path)
    folder.note_empty(folder.images)
    return LoadedSplits(loaded, named.notes + folder.left_out.notes(), row_names)


def find_image_column(rows: datasets.Dataset, column_name: str | None) -> str:
    """Finds the column of images: the one named, or the only one.

    Raises:
        ValueError: if there is none, or more than one.
    """
    if column_name is not None:
        if column_name not in rows.column_names:
            raise ValueError(
                f"there is no image column {column_name!r}; the data have {', '.join(rows.column_names)}"
            )
        return column_name
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


def find_label_column(rows: datasets.Dataset, column_name: str | None, image_column: str) -> str:
    """Finds the column of labels: the one named, one of `LABEL_COLUMNS`, or the only other column.

    Raises:
        ValueError: if there is none, or it is not clear which.
    """
    others = [name for name in rows.column_names if name != image_column]
    if column_name is not None:
        if column_name not in others:
            raise ValueError(
                f"there is no label column {column_name!r}; the data have {', '.join(others) or 'none'}"
            )
        return column_name
    if not others:
        raise ValueError(
            "the images have no labels: put each class in a folder of its own (two at least), or add a "
            "metadata file"
        )
    usual = [name for name in LABEL_COLUMNS if name in others]
    if not usual and len(others) > 1:
        raise ValueError(f"name the labels with label_column; the data have {', '.join(others)}")
    return (usual or others)[0]
