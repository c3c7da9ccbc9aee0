"""Label tables in files (CSV, JSON lines, Parquet), and the images that they name."""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet

from .image_folders import check_name, show


# Words that readers of CSV usually take for a missing value. Among numbers they are one, among words a class.
MISSING_WORDS = frozenset(("na", "n/a", "nan", "none", "null", "<na>", "#n/a", "-"))
FILE_COLUMN = "file_name"


@dataclass
class Table:
    """Rows of a table file.

    Attributes:
        path: the file.
        columns: their names.
        rows: a dict for each.
        lines: names of the rows in errors, such as "line 3".
        features: types of columns that the file defines.
    """

    path: Path
    columns: list[str]
    rows: list[dict[str, Any]]
    lines: list[str]
    features: dict[str, Any] = field(default_factory=dict)

    def row_name(self, index: int) -> str:
        """Names file and row."""
        return f"{show(self.path)}, {self.lines[index]}"


def read_table(path: Path) -> Table:
    """Reads a CSV, JSON lines, JSON or Parquet file. CSV values stay text; empty ones become None.

    Raises:
        ValueError: naming file and line, for what is not UTF-8, damaged, without rows, or of unequal length.
    """
    table = _READERS[path.suffix.lower()](path)
    if not table.rows:
        raise ValueError(f"{show(path)} has no rows")
    return table


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{show(path)} is UTF-16: save it as UTF-8 (iconv -f utf-16 -t utf-8)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        start = content.rfind(b"\n", 0, error.start) + 1
        text = content[start : error.end + 20].split(b"\n")[0].decode("utf-8", "backslashreplace").strip()
        raise ValueError(
            f"{show(path)}, line {line} is not UTF-8: {text}. Save the file as UTF-8 (iconv -f latin1 -t "
            "utf-8)"
        ) from None


def _read_csv(path: Path) -> Table:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    header: list[str] | None = None
    rows, lines = [], []
    start = 1
    try:
        for values in reader:
            line, start = start, reader.line_num + 1
            if not values:
                continue
            if header is None:
                header = [name.strip() for name in values]
                _check_header(path, header)
                continue
            if len(values) != len(header):
                raise ValueError(
                    f"{show(path)}, line {line} has {len(values)} values, and the header {len(header)}: put "
                    "values with a comma in quotes, and leave missing ones empty"
                )
            rows.append({name: value.strip() or None for name, value in zip(header, values, strict=True)})
            lines.append(f"line {line}")
    except csv.Error as error:
        raise ValueError(f"{show(path)}, line {start} is not valid CSV: {error}") from error
    return Table(path, header or [], rows, lines)


def _check_header(path: Path, header: list[str]) -> None:
    if len(header) == 1 and (separator := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise ValueError(f"{show(path)} is separated by {separator!r}: separate its values by commas")
    twice = [name for name, number in Counter(header).items() if number > 1]
    if twice:
        raise ValueError(f"{show(path)} has several columns {twice[0]!r}: give each a name of its own")


def _read_json_lines(path: Path) -> Table:
    rows, lines = [], []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            rows.append(_parse_json(line, f"{show(path)}, line {number}"))
            lines.append(f"line {number}")
    return _table_of(path, rows, lines)


def _read_json(path: Path) -> Table:
    """Reads an array of objects, or JSON lines."""
    text = _read_text(path)
    if not text.lstrip().startswith("["):
        return _read_json_lines(path)
    rows = _parse_json(text, show(path))
    return _table_of(path, rows, [f"row {number}" for number in range(len(rows))])


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place} is not valid JSON: {error}") from error


def _table_of(path: Path, rows: list[Any], lines: list[str]) -> Table:
    for row, line in zip(rows, lines, strict=True):
        if not isinstance(row, dict):
            raise ValueError(f"{show(path)}, {line} must be an object {{name: value, ...}}, not {row!r:.60}")
    return Table(path, list(dict.fromkeys(name for row in rows for name in row)), rows, lines)


def _read_parquet(path: Path) -> Table:
    try:
        table = parquet.read_table(path, partitioning=None)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{show(path)} is not a valid Parquet file: {error}") from error
    rows = table.to_pylist()
    features = datasets.Features.from_arrow_schema(table.schema)
    return Table(path, table.column_names, rows, [f"row {number}" for number in range(len(rows))], features)


_READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


@dataclass
class NamedImages:
    """Table rows that name images.

    Attributes:
        rows: a row for each image, whose columns of files are image columns.
        row_names: names file and row of each.
        images: the file of each.
        used: all files that are named, masks as well.
        notes: lines for the user.
    """

    rows: datasets.Dataset
    row_names: list[str]
    images: list[Path]
    used: set[Path]
    notes: list[str]


def name_images(tables: list[Table], root: Path) -> NamedImages:
    """Resolves column `file_name`, and others such as `mask_file_name`, to the files they name.

    Args:
        tables: files are relative to each of them.
        root: the folder of the data set, beyond which no table may reach.

    Raises:
        FileNotFoundError: for a file that is not there; names table and row.
        ValueError: for an image without a name or with two rows, one beyond `root`, or unfit columns.
    """
    columns = list(dict.fromkeys(name for table in tables for name in table.columns))
    for table in tables:
        if FILE_COLUMN not in table.columns:
            raise ValueError(
                f"{show(table.path)} has no column {FILE_COLUMN}, which names each image relative to the "
                f"table; it has {', '.join(table.columns)}"
            )
    rows, row_names, images, used = [], [], [], set()
    first: dict[Path, str] = {}
    for table in tables:
        for index, row in enumerate(table.rows):
            place = table.row_name(index)
            if not row.get(FILE_COLUMN):
                raise ValueError(f"{place} has no {FILE_COLUMN}: name its image, or take the row out")
            image = _resolve(row[FILE_COLUMN], table.path, root, place)
            if image in first:
                raise ValueError(
                    f"{place} names {show(row[FILE_COLUMN])}, as {first[image]} does: an image may have one "
                    "row"
                )
            first[image] = place
            named: dict[str, Any] = {"image": str(image)}
            used.add(image)
            for name in columns:
                if name == FILE_COLUMN:
                    continue
                value = row.get(name)
                key, is_list = _image_column(name)
                if key is None:
                    named[name] = value
                elif value is None:
                    named[key] = None
                elif is_list:
                    named[key] = [str(_resolve(one, table.path, root, place)) for one in value]
                    used.update(map(Path, named[key]))
                else:
                    named[key] = str(_resolve(value, table.path, root, place))
                    used.add(Path(named[key]))
            rows.append(named)
            row_names.append(place)
            images.append(image)
    values = [name for name in columns if name != FILE_COLUMN and _image_column(name)[0] is None]
    notes = type_columns(rows, tables, values)
    features: dict[str, Any] = {}
    for name in columns:
        key, is_list = ("image", False) if name == FILE_COLUMN else _image_column(name)
        if key is not None:
            if key in features:
                raise ValueError(f"{show(tables[0].path)} has two columns for {key!r}: rename one")
            features[key] = datasets.List(datasets.Image()) if is_list else datasets.Image()
    return NamedImages(make_rows(rows, features, tables), row_names, images, used, notes)


def _image_column(name: str) -> tuple[str | None, bool]:
    """Returns the image column for a column of file names (None if it is not one), and if it holds lists."""
    if name.endswith("_file_name"):
        return name[: -len("_file_name")], False
    if name.endswith("_file_names"):
        return name[: -len("_file_names")], True
    return ("images", True) if name == "file_names" else (None, False)


def _resolve(name: Any, table: Path, root: Path, place: str) -> Path:
    if not isinstance(name, str):
        raise ValueError(f"{place} names the file {name!r}: give its path as text, relative to {table.name}")
    path = table.parent / name
    is_inside = not os.path.isabs(name) and "://" not in name
    if ".." in Path(name).parts:
        path = Path(os.path.normpath(path))
        is_inside = is_inside and path.is_relative_to(os.path.normpath(root))
    if not is_inside:
        raise ValueError(
            f"{place} names {name}: files must be in {show(root)}, and be named relative to {table.name}"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{place} names {name}, which is not in {show(table.parent)}: add it, or take the row out"
        )
    check_name(path)
    return path


def make_rows(rows: list[dict[str, Any]], features: dict[str, Any], tables: list[Table]) -> datasets.Dataset:
    """Builds a data set of `rows` with the given features and those stored in Parquet; infers the others.

    Raises:
        ValueError: for a column whose values are of several types.
    """
    known = {name: feature for table in tables for name, feature in table.features.items()} | features
    names = list(dict.fromkeys(name for row in rows for name in row))
    values: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in names}
    types: dict[str, Any] = {}
    for name in names:
        if name not in known:
            try:
                inferred = pyarrow.array(values[name])
            except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
                raise ValueError(
                    f"the column {name} of {show(tables[0].path)} has values of several types: {error}"
                ) from error
            known[name] = datasets.Features.from_arrow_schema(pyarrow.schema({name: inferred.type}))[name]
        types[name] = known[name]
    return datasets.Dataset.from_dict(values, features=datasets.Features(types))


def type_columns(rows: list[dict[str, Any]], tables: list[Table], names: list[str]) -> list[str]:
    """Converts CSV columns that hold only numbers or only booleans, in the same way for all splits.

    Numbers with leading zeros stay text. Words for a missing value are text among text.

    Returns:
        Notes of such words that were taken for text.
    """
    if {table.path.suffix.lower() for table in tables} != {".csv"}:
        return []
    notes = []
    for name in names:
        given = [row[name] for row in rows if row[name] is not None]
        values = [value for value in given if value.lower() not in MISSING_WORDS]
        convert = next((kind for kind in (_whole, float) if values and _all(kind, values)), None)
        if convert is not None:
            for row in rows:
                value = row[name]
                row[name] = None if value is None or value.lower() in MISSING_WORDS else convert(value)
        elif values and set(map(str.lower, values)) <= {"true", "false"}:
            for row in rows:
                row[name] = (
                    None if row[name] is None else {"true": True, "false": False}.get(row[name].lower())
                )
        else:
            words = Counter(value for value in given if value.lower() in MISSING_WORDS - {"-"})
            notes += [
                f"{number} rows have {word!r} in the column {name}, which is taken for text: leave it empty "
                "where a value is missing"
                for word, number in words.items()
            ]
    return notes


def _whole(text: str) -> int:
    if not re.fullmatch(r"0|-?[1-9]\d{0,17}", text):
        raise ValueError(text)
    return int(text)


def _all(kind: Callable[[str], Any], values: list[str]) -> bool:
    try:
        for value in values:
            kind(value)
    except ValueError:
        return False
    # Codes such as 007 are no numbers.
    return kind is not float or not any(re.match(r"-?0\d", value) for value in values)
