"""Predictions of a large collection: a folder of Parquet files, one per part, each written atomically."""

import json
import uuid
from typing import Any

import pyarrow
from pyarrow import compute, parquet
from pyarrow.dataset import dataset, field
from pyarrow.fs import FileType
from transformers import PreTrainedConfig

from ..data.collections import Part, Stores
from .predict import FilePrediction


SUFFIX = ".parquet"
# Key in the schema's metadata for the settings of the predictions.
ORIGIN = b"vit_hf"


def prediction_schema(config: PreTrainedConfig, with_patches: bool, origin: dict[str, Any]) -> pyarrow.Schema:
    """Columns of the output: the image, the results of `predict_files`, and any error.

    `file` is the image file, or what a Parquet file says that its image is called; `table` and `row` are that
    Parquet file and the row in it, from 0. With `error`, the columns of the prediction are null.

    Args:
        config: config of the model.
        with_patches: whether to output the selected patches.
        origin: settings of the prediction.
    """
    is_regression = config.problem_type == "regression" or config.num_labels == 1
    number, score = pyarrow.float64(), ("score", pyarrow.float64())
    label = ("label", pyarrow.string())
    columns = [("file", pyarrow.string()), ("table", pyarrow.string()), ("row", pyarrow.int64())]
    if is_regression:
        columns += [("value", number if config.num_labels == 1 else pyarrow.list_(number))]
    else:
        columns += [label, score, ("top_k", pyarrow.list_(pyarrow.struct([label, score])))]
    if with_patches:
        indices = pyarrow.list_(pyarrow.int32())
        columns += [("grid", indices), ("selected_patches", indices), ("patches", pyarrow.string())]
    columns += [("error", pyarrow.string())]
    return pyarrow.schema(columns, {ORIGIN: json.dumps(origin)})


class ParquetWriter:
    """The output folder, local or in a store.

    Raises:
        NotADirectoryError: if it is a file.
    """

    def __init__(self, location: str, stores: Stores):
        self.name = stores.add(location)
        self.stores = stores
        filesystem, path = stores.open(self.name)
        if filesystem.get_file_info(path).type == FileType.File:
            raise NotADirectoryError(f"output {self.name} is a file; name a folder")

    def parts(self) -> list[str]:
        """Returns the names of the parts written so far."""
        return [file[: -len(SUFFIX)] for file in self._files() if file.endswith(SUFFIX)]

    def begin(self) -> None:
        """Creates the folder, and removes partial files of an earlier, killed run."""
        filesystem, path = self.stores.open(self.name)
        filesystem.create_dir(path, recursive=True)
        for file in self._files():
            if file.endswith(".tmp"):
                filesystem.delete_file(f"{path}/{file}")

    def has(self, part: Part) -> bool:
        """Checks if a part was written."""
        filesystem, path = self.stores.open(self.name)
        return filesystem.get_file_info(f"{path}/{part.name}{SUFFIX}").type == FileType.File

    def write(self, part: Part, predictions: list[FilePrediction], schema: pyarrow.Schema) -> None:
        """Writes the predictions of a part in its order, replacing earlier ones."""
        rows = []
        for index, prediction in enumerate(predictions):
            where = {"file": prediction.file, "table": part.table}
            if part.table is not None:
                where["row"] = part.rows[index]
            rows.append({**(prediction.result or {}), **where, "error": prediction.error})
        filesystem, path = self.stores.open(self.name)
        # A name of its own: a part may be under way twice, when a worker is taken for dead.
        unfinished = f"{path}/.{part.name}-{uuid.uuid4().hex}.tmp"
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema), unfinished, filesystem=filesystem)
        filesystem.move(unfinished, f"{path}/{part.name}{SUFFIX}")

    def pending(self, parts: list[Part]) -> list[Part]:
        """Returns the images without a prediction: whole parts, or the rest of a part if parts had other
        sizes before."""
        existing = set(self.parts())
        pending = [part for part in parts if part.name not in existing]
        others = sorted(existing - {part.name for part in parts})
        if not pending or not others:
            return pending
        files, rows = self._predicted(others)
        left = [
            Part(
                part.name,
                [file for file in part.files if file not in files],
                part.table,
                part.column,
                [row for row in part.rows if row not in rows.get(part.table, ())],
            )
            for part in pending
        ]
        return [part for part in left if len(part)]

    def check_origin(self, origin: dict[str, Any]) -> None:
        """Refuses to continue an output that was made with other settings.

        Raises:
            ValueError: naming what differs, or a Parquet file that is not of ours.
        """
        filesystem, path = self.stores.open(self.name)
        for name in self.parts()[:1]:
            metadata = parquet.read_schema(f"{path}/{name}{SUFFIX}", filesystem=filesystem).metadata or {}
            if ORIGIN not in metadata:
                raise ValueError(
                    f"output {self.name} has Parquet files of something else in it; name another folder"
                )
            saved = json.loads(metadata[ORIGIN])
            # Through JSON, because there a tuple is a list.
            origin = json.loads(json.dumps(origin))
            differing = [
                f"{key} was {saved.get(key)} and is {origin.get(key)}"
                for key in sorted(saved.keys() | origin.keys())
                if saved.get(key) != origin.get(key)
            ]
            if differing:
                raise ValueError(
                    f"the predictions in {self.name} were made with other settings: {'; '.join(differing)}. "
                    "Give the same as before, or another output."
                )

    def summary(self, num_errors: int) -> tuple[int, int, list[str]]:
        """Counts predicted images (errors included) and errors; also returns the first `num_errors`
        errors."""
        written = self._dataset(self.parts())
        has_error = field("error").is_valid()
        first = written.scanner(["error"], filter=has_error, batch_size=1024).head(num_errors)
        return written.count_rows(), written.count_rows(filter=has_error), first["error"].to_pylist()

    def _predicted(self, names: list[str]) -> tuple[set[str], dict[str, set[int]]]:
        """Image files, and rows by Parquet file, that these parts contain."""
        files, rows = set(), {}
        for batch in self._dataset(names).to_batches(columns=["file", "table", "row"]):
            is_file = compute.is_null(batch["table"])
            files.update(batch.filter(is_file)["file"].to_pylist())
            of_tables = batch.filter(compute.invert(is_file))
            for table, row in zip(of_tables["table"].to_pylist(), of_tables["row"].to_pylist(), strict=True):
                rows.setdefault(table, set()).add(row)
        return files, rows

    def _dataset(self, names: list[str]):
        filesystem, path = self.stores.open(self.name)
        files = [f"{path}/{name}{SUFFIX}" for name in sorted(names)]
        return dataset(files, filesystem=filesystem, format="parquet")

    def _files(self) -> list[str]:
        prefix = f"{self.name}/"
        filesystem, path = self.stores.open(self.name)
        if filesystem.get_file_info(path).type != FileType.Directory:
            return []
        names = [name.removeprefix(prefix) for name in self.stores.list(self.name)]
        return [name for name in names if "/" not in name]
