"""Encoding of a label column, and the problem type that follows from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets
import numpy as np


@dataclass
class EncodedLabels:
    """Labels of every split, ready for the model.

    Attributes:
        problem_type: "single_label_classification", "multi_label_classification" or "regression".
        names: class names in the order of the model's outputs; empty for a regression.
        num_labels: outputs that the model needs.
        splits: for each split, `(N,)` int64 classes, `(N, num_labels)` float32 of 0 and 1, or float32 values
            `(N,)` or `(N, num_labels)`.
    """

    problem_type: str
    names: list[str]
    num_labels: int
    splits: dict[str, np.ndarray]


def encode_labels(
    feature: object,
    columns: dict[str, Sequence],
    label2id: dict[str, int] | None = None,
    row_names: dict[str, list[str]] | None = None,
) -> EncodedLabels:
    """Infers the problem type and encodes the labels.

    Classes (`ClassLabel`, text, whole numbers, booleans) make a single-label classification, lists of classes
    a multi-label one, floats and lists of floats a regression. Classes without names are those that occur in
    any split, sorted.

    Args:
        feature: the feature of the label column in `datasets`.
        columns: for each split, the labels of its rows.
        label2id: the model's classes. Labels are then encoded as these, by name.
        row_names: for some splits, names of the rows in errors, such as its file and line.

    Raises:
        ValueError: for a missing label, a label the model does not know, or only one class.
        TypeError: for a feature that is no kind of label.
    """
    is_list = isinstance(feature, (datasets.List, datasets.LargeList))
    element = feature.feature if is_list else feature
    kind = "class" if isinstance(element, datasets.ClassLabel) else getattr(element, "dtype", None)
    if kind != "class" and kind not in ("string", "large_string", "bool") and "int" not in str(kind):
        if "float" not in str(kind):
            raise TypeError(f"a column of {feature} holds no labels; name the right one with label_column")
        return _values(columns, row_names or {})

    for split, column in columns.items():
        _check_present(split, column, element, row_names or {})
    if kind == "class":
        names = element.names
        to_name: Callable = names.__getitem__
    else:
        to_name = str
        rows = (row for column in columns.values() for row in column)
        values = {value for row in rows for value in row} if is_list else set(rows)
        names = [str(value) for value in sorted(values)]
    if label2id is not None:
        names = _align(names, label2id)
    if len(names) < 2:
        raise ValueError(f"the data have only one class, {names[0]!r}; a classifier needs at least two")

    index = {name: number for number, name in enumerate(names)}
    if is_list:
        splits = {
            split: _multi_hot(
                split,
                row_names or {},
                [[index[to_name(value)] for value in row] for row in column],
                len(names),
            )
            for split, column in columns.items()
        }
        return EncodedLabels("multi_label_classification", names, len(names), splits)
    splits = {
        split: np.array([index[to_name(value)] for value in column], np.int64)
        for split, column in columns.items()
    }
    return EncodedLabels("single_label_classification", names, len(names), splits)


def _place(split: str, number: int, row_names: dict[str, list[str]]) -> str:
    return row_names[split][number] if split in row_names else f"row {number} of the {split} split"


def _values(columns: dict[str, Sequence], row_names: dict[str, list[str]]) -> EncodedLabels:
    """Encodes regression targets, one or several per row."""
    splits = {}
    for split, column in columns.items():
        missing = next((number for number, value in enumerate(column) if value is None), None)
        if missing is not None:
            raise ValueError(
                f"{_place(split, missing, row_names)} has no finite value as its label: give one, or remove "
                "the row"
            )
        try:
            splits[split] = np.array(column, np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the {split} split has rows of differing or missing values") from error
        wrong = np.flatnonzero(~np.isfinite(splits[split].reshape(len(column), -1)).all(-1))
        if wrong.size:
            raise ValueError(
                f"{_place(split, wrong[0], row_names)} has no finite value as its label: give one, or remove "
                "the row"
            )
    widths = {values.shape[1:] for values in splits.values() if len(values)}
    if len(widths) != 1:
        raise ValueError(f"the splits have labels of differing shapes: {sorted(widths)}")
    width = widths.pop()
    return EncodedLabels("regression", [], width[0] if width else 1, splits)


def _check_present(split: str, column: Sequence, element: object, row_names: dict[str, list[str]]) -> None:
    for number, row in enumerate(column):
        values = row if isinstance(row, list) else [row]
        # datasets writes -1 for "not labeled"
        unlabeled = isinstance(element, datasets.ClassLabel) and -1 in values
        if row is None or None in values or "" in values or unlabeled:
            raise ValueError(
                f"{_place(split, number, row_names)} has no label: give one, or remove such rows or the split"
            )


def _multi_hot(
    split: str, row_names: dict[str, list[str]], rows: list[list[int]], num_labels: int
) -> np.ndarray:
    hot = np.zeros((len(rows), num_labels), np.float32)
    for number, row in enumerate(rows):
        if len(set(row)) < len(row):
            raise ValueError(
                f"{_place(split, number, row_names)} names a class twice: a list of labels holds the classes "
                "that apply; a list of zeros and ones has to be turned into that"
            )
        hot[number, row] = 1
    return hot


def _align(names: list[str], label2id: dict[str, int]) -> list[str]:
    """Returns the class names in the model's order, after a check that they cover the data's."""
    ordered = sorted(label2id, key=label2id.__getitem__)
    unknown = [name for name in names if name not in label2id]
    if not unknown:
        return ordered
    generic = all(name.startswith("LABEL_") for name in ordered)
    if generic and len(names) == len(ordered):
        return names
    raise ValueError(
        f"the model has no class {unknown[0]!r} ({len(unknown)} of the data's {len(names)} classes are "
        f"unknown to it); it has {len(ordered)}: "
        f"{', '.join(ordered[:8])}{', ...' if len(ordered) > 8 else ''}"
    )
