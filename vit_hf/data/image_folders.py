"""Folders of images: finds images, splits and classes, and reports what is left out.

Every task reads folders through this module, so that classification, masks, boxes, pretraining and prediction
agree.
"""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..readers.suffixes import IMAGE_SUFFIXES, WHOLE_SUFFIXES, is_zarr


# Names of a split, in a data set or as a folder; those that `datasets` knows.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {alias: split for split, names in SPLIT_NAMES.items() for alias in names}
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

# Files and folders that systems and tools leave behind, in lower case, beyond those that begin with a dot.
TOOL_NAMES = frozenset(
    {"__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin"}
    | {"system volume information", "lost+found", "__pycache__", "_gsdata_", "cvs"}
    | {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"}
)
NAMES_SHOWN = 3

# Kinds of unused files and folders, singular and plural.
UNKNOWN = ("file of unknown type", "files of unknown type")
REGIONS_ONLY = (
    "image of a kind that only vit-hf predict --tile reads",
    "images of kinds that only vit-hf predict --tile reads",
)
DOT_FILE = ("file that begins with a dot", "files that begin with a dot")
DOT_FOLDER = ("folder that begins with a dot", "folders that begin with a dot")
TOOL_FILE = ("file of the system", "files of the system")
TOOL_FOLDER = ("folder of the system or a tool", "folders of the system or of tools")
BROKEN_LINK = ("broken link", "broken links")
LOOP = ("link to a folder above it", "links to folders above them")
NO_IMAGES = ("folder without images", "folders without images")
BESIDE_FOLDER = ("folder with images outside the splits", "folders with images outside the splits")
BESIDE_FILE = ("file outside the splits", "files outside the splits")
NO_CLASS = ("image in no class folder", "images in no class folder")
NO_METADATA = ("image that no metadata file names", "images that no metadata file names")
NO_ANNOTATION = ("image without a Pascal VOC file", "images without a Pascal VOC file")
OTHER_TABLE = ("table of another format", "tables of other formats")
OTHER_SPLIT = ("split of another name", "splits of other names")


class LeftOut:
    """Collects the names of unused files and folders by kind.

    Args:
        root: the folder below which names are shown.
    """

    def __init__(self, root: Path | None = None):
        self.root = root
        self.names: dict[tuple[str, str], dict[str, str]] = {}

    def add(self, kind: tuple[str, str], name: str | os.PathLike) -> None:
        name = os.fspath(name)
        is_below = self.root is not None and Path(name).is_relative_to(self.root)
        shown = show(Path(name).relative_to(self.root)) if is_below else show(name)
        self.names.setdefault(kind, {})[name] = shown

    def update(self, other: "LeftOut") -> None:
        for kind, names in other.names.items():
            self.names.setdefault(kind, {}).update(names)

    def notes(self) -> list[str]:
        """Returns one line for the user, or none."""
        parts = []
        for (one, several), names in self.names.items():
            shown = [*names.values()][:NAMES_SHOWN] + ["..."] * (len(names) > NAMES_SHOWN)
            parts.append(f"{len(names)} {one if len(names) == 1 else several} ({', '.join(shown)})")
        return [f"left out: {', '.join(parts)}"] if parts else []


def show(name: str | os.PathLike) -> str:
    """Makes a name printable: bytes that are not UTF-8 become \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def left_out_kind(name: str, is_folder: bool) -> tuple[str, str] | None:
    """Returns the reason why a file or folder of this name is never read; None if it may be."""
    if name.lower() in TOOL_NAMES:
        return TOOL_FOLDER if is_folder else TOOL_FILE
    if name.startswith("."):
        return DOT_FOLDER if is_folder else DOT_FILE
    return None


def list_files(folder: Path, left_out: LeftOut, folders: list[Path] | None = None) -> Iterator[Path]:
    """Yields all files in a folder and below, sorted folder by folder; a zarr folder counts as one file.

    Links are followed, unless they lead back to a folder above. Hidden files and those of tools are left out.

    Args:
        folders: collects the folders that are searched.

    Raises:
        OSError: for a folder that may not be read.
    """
    yield from _list_files(folder, left_out, folders, (os.path.realpath(folder),))


def _list_files(
    folder: Path, left_out: LeftOut, folders: list[Path] | None, above: tuple[str, ...]
) -> Iterator[Path]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        path, is_folder = Path(entry.path), entry.is_dir()
        if kind := left_out_kind(entry.name, is_folder):
            left_out.add(kind, path)
        elif not is_folder:
            if entry.is_file():
                yield path
            elif entry.is_symlink():
                left_out.add(BROKEN_LINK, path)
            else:  # a socket or the like
                left_out.add(UNKNOWN, path)
        elif is_zarr(path):
            yield path
        else:
            # Only a link can lead back, and resolving every folder would take its time.
            real = os.path.realpath(path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
            if real in above:
                left_out.add(LOOP, path)
                continue
            if folders is not None:
                folders.append(path)
            yield from _list_files(path, left_out, folders, (*above, real))


@dataclass
class FolderFile:
    """A file of a split.

    Attributes:
        path: path of the file.
        parts: the folders between the split's folder and the file, then the file's name.
    """

    path: Path
    parts: tuple[str, ...]


@dataclass
class ImageFolder:
    """The contents of a folder, by kind.

    Attributes:
        path: the folder.
        images, metadata, annotations: image files, files of `METADATA_NAMES`, and Pascal VOC files.
        tables: Parquet, CSV, JSON and Arrow files.
        folders: all folders below.
        left_out: everything else.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    metadata: list[Path] = field(default_factory=list)
    annotations: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)

    def splits(self, files: list[Path], has_classes: bool | None) -> dict[str, list[FolderFile]]:
        """Groups files by split; without splits all are `train`. Files outside the splits are left out.

        Folders named as in `SPLIT_NAMES` (in any case) are splits regardless of other folders.

        Args:
            files: some in this folder.
            has_classes: whether other folders mean classes; None if they mean nothing.

        Raises:
            ValueError: if the folders can be read in two ways, both of which are named.
        """
        inner = {path: path.relative_to(self.path).parts for path in files}
        tops = list(dict.fromkeys(parts[0] for parts in inner.values() if len(parts) > 1))
        named = [name for name in tops if name.lower() in SPLIT_OF]
        others = [name for name in tops if name not in named]
        if not named:
            self._check_deeper_splits(list(inner.values()), others)
        if not named or self._are_classes(named, others, list(inner.values()), has_classes):
            return {"train": [FolderFile(path, parts) for path, parts in inner.items()]}
        splits: dict[str, list[FolderFile]] = {}
        for path, parts in inner.items():
            if parts[0] in named and len(parts) > 1:
                splits.setdefault(SPLIT_OF[parts[0].lower()], []).append(FolderFile(path, parts[1:]))
            elif len(parts) == 1:
                self.left_out.add(BESIDE_FILE, path)
        for name in others:
            self.left_out.add(BESIDE_FOLDER, self.path / name)
        return {split: splits[split] for split in SPLIT_NAMES if split in splits}

    def _are_classes(
        self, named: list[str], others: list[str], files: list[tuple[str, ...]], has_classes: bool | None
    ) -> bool:
        """Checks if the only folder named like a split is a class, such as "train" among vehicles."""
        if len(named) > 1 or not others or has_classes is None:
            return False
        name = named[0]
        if any(path.parent == self.path / name for path in self.metadata):
            return False
        folders: dict[str, set[str]] = {top: set() for top in (name, *others)}
        for parts in files:
            if len(parts) > 2:
                folders[parts[0]].add(parts[1])
        is_flat = not folders[name]
        if is_flat and has_classes:
            return True
        alike = [other for other in others if folders[other] == folders[name]]
        if not alike:
            return False
        raise ValueError(
            f"{show(self.path)} can be read in two ways: {show(name)} is a split and {show(alike[0])} is not "
            "part of it, or both are folders of equal rank, all for training. For the first, give "
            f"{show(self.path / name)} or move {show(alike[0])} away; for the second, rename {show(name)}."
        )

    def _check_deeper_splits(self, files: list[tuple[str, ...]], tops: list[str]) -> None:
        """Raises: ValueError if deeper folders are named like splits, because all would be trained on."""
        found: dict[tuple[str, ...], dict[str, str]] = {}
        for parts in files:
            for depth in range(1, len(parts) - 1):
                if split := SPLIT_OF.get(parts[depth].lower()):
                    found.setdefault(parts[:depth], {})[split] = parts[depth]
        for above, splits in found.items():
            if len(splits) > 1:
                inside = "/".join(above)
                names = ", ".join(show(f"{inside}/{name}") for name in sorted(splits.values()))
                raise ValueError(
                    f"{show(self.path)} has folders named like splits further down: {names}. Either these "
                    f"are its splits: give {show(self.path / inside)}, or move them to the top, with the "
                    "class folders in them; or everything is for training: rename them."
                )
        alike = {}
        for name in tops:
            for word in re.split(r"[-._ 0-9]+", name.lower()):
                if word in SPLIT_OF:
                    alike.setdefault(SPLIT_OF[word], []).append(name)
        if len(alike) > 1 and 2 * sum(map(len, alike.values())) >= len(tops):
            names = ", ".join(sorted(show(name) for found in alike.values() for name in found))
            raise ValueError(
                f"the folders {names} of {show(self.path)} are named much like splits. Either they are its "
                f"splits: name them {', '.join(alike)}; or they are classes of their own: rename them."
            )

    def note_empty(self, used: Collection[Path]) -> None:
        """Records the topmost folders that contain none of the used files."""
        full = {parent for path in used for parent in path.parents}
        empty: set[Path] = set()
        for folder in self.folders:
            if folder not in full:
                if folder.parent not in empty:
                    self.left_out.add(NO_IMAGES, folder)
                empty.add(folder)


def scan_folder(folder: Path) -> ImageFolder:
    """Lists what training may read in a folder.

    Raises:
        OSError: for a folder that may not be read.
    """
    found = ImageFolder(folder, left_out=LeftOut(folder))
    for path in list_files(folder, found.left_out, found.folders):
        suffix = path.suffix.lower()
        if path.name in METADATA_NAMES:
            found.metadata.append(path)
        elif suffix in WHOLE_SUFFIXES:
            found.images.append(path)
        elif suffix == ".xml":
            found.annotations.append(path)
        elif suffix in IMAGE_SUFFIXES or path.is_dir():
            found.left_out.add(REGIONS_ONLY, path)
        elif suffix in (".parquet", ".csv", ".json", ".jsonl", ".arrow"):
            found.tables.append(path)
        else:
            found.left_out.add(UNKNOWN, path)
    return found


def check_name(path: Path) -> None:
    """Raises: ValueError for a path that is not UTF-8, which a table of paths cannot hold."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            f"the path {show(path)} is not UTF-8: rename that file or folder (convmv -f latin1 -t utf8 does "
            "many)"
        ) from None


def label_by_folder(splits: dict[str, list[FolderFile]], left_out: LeftOut) -> dict[str, list[str]] | None:
    """Labels each image by the folder below its split; removes images in no class folder from `splits`.

    Returns:
        Classes by split; None if there are fewer than two.
    """
    classes = {file.parts[0] for files in splits.values() for file in files if len(file.parts) > 1}
    if len(classes) < 2:
        return None
    for split, files in splits.items():
        for file in files:
            if len(file.parts) == 1:
                left_out.add(NO_CLASS, file.path)
        splits[split] = [file for file in files if len(file.parts) > 1]
    return {split: [file.parts[0] for file in files] for split, files in splits.items()}
