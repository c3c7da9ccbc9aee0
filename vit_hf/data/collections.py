"""Image collections larger than memory, split into parts: image files and rows of Parquet files."""

import hashlib
import os
import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path, PurePath

import PIL.Image
import pyarrow
from pyarrow import parquet
from pyarrow.fs import FileSelector, FileSystem, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem

from ..readers.suffixes import is_image, is_whole_image
from .image_folders import REGIONS_ONLY, UNKNOWN, LeftOut, left_out_kind, list_files
from .images import StoredImage, decode_image, expand_pattern


class Stores:
    """File systems, found by the names of their files.

    A name is an absolute path of this machine (which other machines of a cluster then need, too), or a URI
    such as `s3://bucket/photos/1.jpg`, without the secrets and options that a URI may be given with. Can be
    pickled.
    """

    def __init__(self):
        self.filesystems: dict[str, FileSystem] = {}

    def add(self, location: str) -> str:
        """Returns the name of the file or folder at a path or URI.

        Raises:
            ValueError: for a URI of an unknown kind, or one without the package that reads it.
        """
        if "://" not in location:
            return os.path.abspath(os.path.expanduser(location))
        try:
            filesystem, path = _filesystem_of(location)
        except (pyarrow.ArrowInvalid, ImportError, ValueError) as error:
            raise ValueError(f"cannot open {_without_options(location)}: {error}") from error
        if isinstance(filesystem, LocalFileSystem):
            return path
        name = f"{location.partition('://')[0]}://{path.rstrip('/')}"
        self.filesystems[_root(name)] = filesystem
        return name

    def open(self, name: str) -> tuple[FileSystem, str]:
        """Returns the file system that holds `name`, and the path in it."""
        if "://" in name and _root(name) not in self.filesystems:
            name = self.add(name)
        if "://" not in name:
            return LocalFileSystem(), name
        return self.filesystems[_root(name)], name.partition("://")[2]

    def read(self, name: str) -> bytes:
        """Returns the contents of a file.

        Raises:
            ValueError: if there is none. Other failures, which may pass, stay OSError.
        """
        filesystem, path = self.open(name)
        try:
            with filesystem.open_input_file(path) as file:
                return file.read()
        except FileNotFoundError as error:
            raise ValueError(f"Cannot read the image {name!r}: there is no such file.") from error

    def list(self, location: str) -> list[str]:
        """Lists the files at a path or URI: that file, or all files in that folder and below.

        Raises:
            FileNotFoundError: for a URI at which nothing is. A path is returned whether a file is there or
                not.
        """
        name = self.add(location)
        filesystem, path = self.open(name)
        info = filesystem.get_file_info(path)
        if info.type == FileType.NotFound and "://" in name:
            raise FileNotFoundError(f"there is nothing at {name}")
        if info.type != FileType.Directory:
            return [name]
        prefix = name[: len(name) - len(path)]
        entries = filesystem.get_file_info(FileSelector(path, recursive=True))
        return sorted(prefix + entry.path for entry in entries if entry.type == FileType.File)

    def resolve(self, name: str, path: str) -> str:
        """Resolves `path` as found in the file `name`: URIs and absolute paths are unchanged, others are
        relative to that file."""
        if "://" in path or os.path.isabs(path):
            return path
        return posixpath.join(posixpath.dirname(name), path)


def _filesystem_of(uri: str) -> tuple[FileSystem, str]:
    try:
        return FileSystem.from_uri(uri)
    except pyarrow.ArrowInvalid:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(uri)
        return PyFileSystem(FSSpecHandler(filesystem)), path


def _root(name: str) -> str:
    """Returns scheme and bucket, which determine the file system: buckets may be in different regions."""
    scheme, _, path = name.partition("://")
    return f"{scheme}://{path.partition('/')[0]}"


def _without_options(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


@dataclass(frozen=True)
class ImageTable:
    """A Parquet file, its number of rows, and its column of images."""

    name: str
    num_rows: int
    column: str


@dataclass(frozen=True)
class Part:
    """Some images of a collection, predicted together.

    Attributes:
        name: made from which images belong to it, so that it is the same whenever they are.
        files: names of image files, or none;
        table, column, rows: then where and which rows of a Parquet file, ascending, and the column of images.
    """

    name: str
    files: list[str] = field(default_factory=list)
    table: str | None = None
    column: str | None = None
    rows: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files) or len(self.rows)

    def names(self) -> list[str]:
        """Names of the images in errors: the file, or the Parquet file and row."""
        return self.files or [f"{self.table}#{row}" for row in self.rows]

    def single(self) -> Iterator["Part"]:
        """Yields one part per image."""
        for file in self.files:
            yield Part(_hash(file), [file])
        for row in self.rows:
            yield replace(self, name=_hash(f"{self.table}#{row}"), rows=[row])


def find_collection(
    inputs: list[str],
    stores: Stores,
    image_column: str | None = None,
    without: str | None = None,
    left_out: LeftOut | None = None,
) -> tuple[list[str], list[ImageTable]]:
    """Finds image files and Parquet files, named or in folders, local or in a store.

    Args:
        inputs: paths, local patterns and URIs; folders are searched recursively, by the files' endings.
        stores: learns where the files are.
        image_column: column of the Parquet files; by default the only one that can hold images.
        without: folder to leave out.
        left_out: collects files in folders that are neither images nor Parquet files.

    Returns:
        Each file once. An image file that was named is returned regardless of its ending.

    Raises:
        FileNotFoundError: for a pattern that matches nothing, a folder with neither, and as `Stores.list`
            does.
        ValueError: for a damaged Parquet file, and one in which it is not clear where the images are.
    """
    files, tables = {}, {}
    left_out = LeftOut() if left_out is None else left_out
    for location in (location for pattern in inputs for location in _expand(pattern)):
        found = _list(location, stores, without, left_out)
        is_named = found == [stores.add(location)]
        images = [name for name in found if is_named or is_whole_image(name)]
        parquets = [name for name in found if _is_table(name)]
        if not is_named:
            for name in found:
                if not is_whole_image(name) and not _is_table(name):
                    left_out.add(REGIONS_ONLY if is_image(name) else UNKNOWN, name)
        if not images and not parquets:
            raise FileNotFoundError(
                f"no image and no Parquet file in the folder {stores.add(location)}, nor in the folders below"
            )
        files.update(dict.fromkeys(name for name in images if not _is_table(name)))
        tables.update(dict.fromkeys(parquets))
    with ThreadPoolExecutor(16) as pool:  # a store takes its time for each
        return list(files), list(pool.map(lambda name: _open_table(name, stores, image_column), tables))


def make_parts(files: list[str], tables: list[ImageTable], size: int) -> Iterator[Part]:
    """Yields parts of at most `size` images; each has image files only or rows of one Parquet file."""
    for start in range(0, len(files), size):
        names = files[start : start + size]
        yield Part(_hash("\n".join(names)), names)
    for table in tables:
        for start in range(0, table.num_rows, size):
            rows = list(range(start, min(start + size, table.num_rows)))
            name = _hash(f"{table.name}#{start}-{rows[-1]}")
            yield Part(name, table=table.name, column=table.column, rows=rows)


def read_part(part: Part, stores: Stores, batch_size: int) -> Iterator[dict[str, StoredImage]]:
    """Yields the undecoded images of a part by name, a batch at a time."""
    sources = part.files if part.table is None else _read_rows(part, stores, batch_size)
    batch = {}
    for name, source in zip(part.names(), sources, strict=True):
        batch[name] = source
        if len(batch) == batch_size:
            yield batch
            batch = {}
    if batch:
        yield batch


def path_of(source: StoredImage) -> str | None:
    """Path that an image has or was stored with."""
    return source["path"] if isinstance(source, dict) else source


def decode_stored(name: str, source: StoredImage, stores: Stores) -> PIL.Image.Image:
    """Decodes an image of a part.

    Raises:
        ValueError: naming it, if it is missing or damaged.
        OSError: if a store fails.
    """
    if isinstance(source, dict) and source["bytes"] is None:
        source = source["path"]
    if source is None:
        raise ValueError(f"{name}: there is no image in this row")
    if isinstance(source, dict):
        source = {"bytes": source["bytes"], "path": name}
    elif "://" in source:
        source = {"bytes": stores.read(source), "path": source}
    return decode_image(source)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def _expand(pattern: str) -> list[str]:
    """Expands a local pattern to files; returns anything else unchanged."""
    return [pattern] if "://" in pattern else expand_pattern(pattern)


def _list(location: str, stores: Stores, without: str | None, left_out: LeftOut) -> list[str]:
    """Lists the files at a location, without hidden files, files of tools, and those in `without`."""
    name = stores.add(location)
    if "://" not in name and os.path.isdir(name):
        return [str(path) for path in list_files(Path(name), left_out) if not _is_in(str(path), without)]
    found = []
    for file in stores.list(location):
        parts = PurePath(file.removeprefix(name)).parts
        # Depth 0 is the root, or the file that was named.
        kinds = [left_out_kind(part, part is not parts[-1]) for part in parts if file != name and part != "/"]
        kind = next(filter(None, kinds), None)
        if kind is not None:
            left_out.add(kind, file)
        elif not _is_in(file, without):
            found.append(file)
    return found


def _is_in(name: str, folder: str | None) -> bool:
    return folder is not None and name.startswith(f"{folder}/")


def _is_table(name: str) -> bool:
    path = PurePath(name)
    return path.suffix.lower() == ".parquet" and not path.name.startswith((".", "_"))


def _open_table(name: str, stores: Stores, image_column: str | None) -> ImageTable:
    filesystem, path = stores.open(name)
    try:
        metadata = parquet.read_metadata(path, filesystem=filesystem)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{name} is not a valid Parquet file: {error}") from error
    return ImageTable(
        name, metadata.num_rows, _image_column(name, metadata.schema.to_arrow_schema(), image_column)
    )


def _image_column(name: str, schema: pyarrow.Schema, column_name: str | None) -> str:
    if column_name is not None:
        if column_name not in schema.names:
            raise ValueError(f"{name} has no image_column {column_name!r}, but {', '.join(schema.names)}")
        return column_name
    found = [column.name for column in schema if _holds_bytes(column.type)]
    # Otherwise the images are files, and this the column of their paths.
    found = found or [column.name for column in schema if _is_text(column.type)]
    if len(found) != 1:
        raise ValueError(
            f"{name} has {'several columns' if found else 'no column'} that may be images; name the right "
            f"one of {', '.join(schema.names)} with image_column"
        )
    return found[0]


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    # `datasets` writes an image as {"bytes": ..., "path": ...}.
    if pyarrow.types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(index).name for index in range(kind.num_fields)}
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _is_text(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _read_rows(part: Part, stores: Stores, batch_size: int) -> Iterator[StoredImage]:
    filesystem, path = stores.open(part.table)
    with filesystem.open_input_file(path) as stream:
        file = parquet.ParquetFile(stream)
        metadata = file.metadata
        sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        starts = [0, *accumulate(sizes)]
        groups = [
            index
            for index in range(len(sizes))
            if starts[index] <= part.rows[-1] and part.rows[0] < starts[index + 1]
        ]
        chosen, row = set(part.rows), starts[groups[0]]
        for batch in file.iter_batches(batch_size, row_groups=groups, columns=[part.column]):
            for value in batch.column(0):
                if row in chosen:
                    yield _source(value.as_py(), part.table, stores)
                row += 1
            if row > part.rows[-1]:
                return


def _source(value: dict | bytes | str | None, table: str, stores: Stores) -> dict:
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if not isinstance(value, dict):
        value = {"bytes": None, "path": value}
    if value["bytes"] is None and value["path"]:
        return {"bytes": None, "path": stores.resolve(table, value["path"])}
    return {"bytes": value["bytes"], "path": value["path"]}
