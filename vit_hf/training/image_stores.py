"""Where the images of large collections are: this machine's files, and whatever pyarrow and fsspec have a file system for."""

import os
import posixpath

import pyarrow
from pyarrow.fs import FileSelector, FileSystem, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem


class Stores:
    """File systems by the names of the files in them.

    A name is an absolute path of this machine (which other machines of a cluster then need, too), or a URI such as
    `s3://bucket/photos/1.jpg`, without the secrets and options that a URI may be given with. Can be pickled.
    """

    def __init__(self):
        self.filesystems: dict[str, FileSystem] = {}

    def add(self, location: str) -> str:
        """The name of what is at a path or URI.

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
        """The file system that has `name`, and the path in it."""
        if "://" in name and _root(name) not in self.filesystems:
            name = self.add(name)
        if "://" not in name:
            return LocalFileSystem(), name
        return self.filesystems[_root(name)], name.partition("://")[2]

    def read(self, name: str) -> bytes:
        """The contents of a file.

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
        """Names of the files at a path or URI: that file, or all in that folder and below.

        Raises:
            FileNotFoundError: for a URI at which nothing is. A path is returned whether a file is there or not.
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

    def beside(self, name: str, path: str) -> str:
        """What `path` means in the file `name`: a URI or an absolute path means itself, any other is beside that file."""
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
    """The part of a name that says which file system it is in: buckets may be in different regions."""
    scheme, _, path = name.partition("://")
    return f"{scheme}://{path.partition('/')[0]}"


def _without_options(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"
