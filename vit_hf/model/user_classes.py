"""Position encodings, patch selectors and token reducers of a user's own, and how their files travel.

A field of the configuration may name a class of its table, one that a decorator registered, or one of a module,
`"my_positions.MyEncoding"`. The file of such a class, and what it imports from its own folder, is saved with the
model, imports from the package turned into imports of the files that travel beside it. A checkpoint with such a file
loads with `trust_remote_code=True`, or where the class was imported already.
"""

import ast
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from transformers.dynamic_module_utils import get_class_from_dynamic_module, get_relative_import_files
from transformers.utils import logging

from .positions import POSITION_ENCODINGS
from .reduction import TOKEN_REDUCERS
from .selection import PATCH_SELECTORS


logger = logging.get_logger(__name__)

TABLES: dict[str, dict[str, type]] = {
    "position_encoding": POSITION_ENCODINGS,
    "patch_selector": PATCH_SELECTORS,
    "token_reducer": TOKEN_REDUCERS,
}
BASES = {
    "position_encoding": "PositionEncoding",
    "patch_selector": "PatchSelector",
    "token_reducer": "TokenReducer",
}
BUILT_IN = {field: frozenset(table) for field, table in TABLES.items()}
# What `save_pretrained` copies without being told, here or where a checkpoint was unpacked.
OUR_FILES = frozenset(path.stem for path in Path(__file__).parent.glob("*.py"))
# Names that a checkpoint's own file has given a class to, which the file of the next checkpoint may replace.
FETCHED: set[tuple[str, str]] = set()
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "code_revision")

AnyClass = TypeVar("AnyClass", bound=type)


def register_position_encoding(name: str) -> Callable[[AnyClass], AnyClass]:
    """Decorates a `PositionEncoding`, for `position_encoding=name`.

    Raises:
        ValueError: if the name is one of ours, or the class is no such.
    """
    return _register("position_encoding", name)


def register_patch_selector(name: str) -> Callable[[AnyClass], AnyClass]:
    """Decorates a `PatchSelector`, for `patch_selector=name`. Raises as `register_position_encoding`."""
    return _register("patch_selector", name)


def register_token_reducer(name: str) -> Callable[[AnyClass], AnyClass]:
    """Decorates a `TokenReducer`, for `token_reducer=name`. Raises as `register_position_encoding`."""
    return _register("token_reducer", name)


def _register(field: str, name: str) -> Callable[[AnyClass], AnyClass]:
    if name in BUILT_IN[field]:
        raise ValueError(f"{name!r} is the name of a {field} of vit_hf: choose another.")
    if "." in name or not name:
        raise ValueError(f"{name!r} must be a name without a dot: with one it would be a class of a module.")

    def decorate(cls: AnyClass) -> AnyClass:
        TABLES[field][name] = check_class(field, name, cls)
        return cls

    return decorate


def derives_from(cls: type, base: str) -> bool:
    """Whether a class has a base of that name: the same base may have been loaded twice, from package and checkpoint."""
    return any(parent.__name__ == base for parent in cls.__mro__)


def check_class(field: str, name: str, cls: Any) -> type:
    """The class.

    Raises:
        ValueError: if it is no class for the field, or its file cannot travel beside ours.
    """
    if not isinstance(cls, type) or not derives_from(cls, BASES[field]):
        raise ValueError(f"{field}={name!r} must be a class derived from vit_hf.{BASES[field]}, got {cls!r}.")
    clashes = [path.name for path in files_of(cls) if path.stem in OUR_FILES]
    if clashes and not cls.__module__.startswith("transformers_modules."):
        raise ValueError(
            f"{field}={name!r} is defined in files that could not be saved with the model, as vit_hf has files of the "
            f"same name: rename {', '.join(clashes)}."
        )
    return cls


def is_known(config, field: str) -> bool:
    """Whether the class that a field names can be found now or, in a module or a checkpoint's file, later."""
    name = getattr(config, field)
    shipped = getattr(config, "auto_map", None) or {}
    return name in TABLES[field] or "." in name.strip(".") or field in shipped


def find_class(config, field: str) -> type | None:
    """The class that a field of the configuration names; None if it names none.

    Raises:
        ValueError: if there is no such class.
    """
    name = getattr(config, field)
    if name is None:
        return None
    if name not in TABLES[field]:
        TABLES[field][name] = check_class(field, name, _shipped(name) or _import(field, name))
    return TABLES[field][name]


def _shipped(name: str) -> type | None:
    from .shipped_classes import CLASSES

    return CLASSES.get(name)


def _import(field: str, name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(
            f"{field}={name!r} is not registered: import the file whose decorator does that. Known are "
            f"{sorted(TABLES[field])}."
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.partition(".")[0]):
            raise
        raise ValueError(
            f"{field}={name!r}: there is no module {module!r} on Python's path. Start where {module}.py is, or add its "
            f"folder to PYTHONPATH. A class without a dot in its name is one of {sorted(TABLES[field])}."
        ) from error
    except AttributeError as error:
        raise ValueError(f"{field}={name!r}: the module {module} has no {attribute}.") from error


def fetch_classes(source: str, values: Mapping[str, Any], trust: bool, **options: Any) -> None:
    """Makes the classes known that a checkpoint brings along.

    Args:
        source: folder, or name on the Hub.
        values: the checkpoint's configuration.
        trust: whether code of the checkpoint may run.
        options: where and how to download, as of `from_pretrained`.

    Raises:
        ValueError: if a class would have to be taken from the checkpoint, or imported because of it, without trust.
    """
    for field, table in TABLES.items():
        name = values.get(field)
        known = name in table and (field, name) not in FETCHED
        if name is None or known or _shipped(name) or name.rpartition(".")[0] in sys.modules:
            continue
        if not trust:
            raise ValueError(
                f"{source} has {field}={name!r}, which is not a class of vit_hf. Import the file that defines it, or, "
                "having read the code that came with the checkpoint, pass trust_remote_code=True."
            )
        reference = (values.get("auto_map") or {}).get(field)
        if reference is not None:
            options = {key: value for key, value in options.items() if key in HUB_OPTIONS}
            cls = get_class_from_dynamic_module(reference, source, **options)
            table[name] = check_class(field, name, cls)
            FETCHED.add((field, name))


def user_classes(config) -> dict[str, type]:
    """The classes that are not ours, by field."""
    return {
        field: find_class(config, field)
        for field in TABLES
        if getattr(config, field) is not None and getattr(config, field) not in BUILT_IN[field]
    }


def references(classes: Mapping[str, type]) -> dict[str, str]:
    """What `auto_map` of the configuration says of them: in which file each is."""
    return {
        field: f"{files_of(cls)[0].stem}.{cls.__name__}" for field, cls in classes.items() if files_of(cls)
    }


def save_classes(config, classes: Mapping[str, type], folder: str | Path) -> None:
    """Writes the files of `classes` into a saved checkpoint, and the one that imports them."""
    imports, entries = [], []
    for field, cls in classes.items():
        files = files_of(cls)
        if not files:
            logger.warning(
                f"{cls.__name__} was not saved with the model, as it is defined in a notebook or the script that runs. "
                "Put it into a file of its own and import it."
            )
            continue
        for file in files:
            if file.stem not in OUR_FILES:
                text = _with_relative_imports(file.read_text(encoding="utf-8"))
                (Path(folder) / file.name).write_text(text, encoding="utf-8")
        imports.append(f"from .{files[0].stem} import {cls.__name__}")
        entries.append(f"    {getattr(config, field)!r}: {cls.__name__},")
    lines = ['"""Classes that travel with this checkpoint, by their names in the configuration."""', ""]
    lines += [*dict.fromkeys(imports), "", "", "CLASSES = {", *dict.fromkeys(entries), "}", ""]
    (Path(folder) / "shipped_classes.py").write_text("\n".join(lines), encoding="utf-8")


def files_of(cls: type) -> list[Path]:
    """The file that defines a class, and those that it imports from its own folder; none in a notebook."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if cls.__module__ == "__main__" or file is None or not Path(file).is_file():
        return []
    return [Path(file), *map(Path, sorted(get_relative_import_files(file)))]


def _with_relative_imports(source: str) -> str:
    """Code that imports from the files beside it what it imported from this package."""
    package = __package__ or ""
    lines = source.splitlines()
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    for node in sorted(imports, key=lambda node: node.lineno, reverse=True):
        if node.level or not f"{node.module}.".startswith((f"{package}.", f"{package.partition('.')[0]}.")):
            continue
        module = importlib.import_module(node.module)
        found = [
            (alias, getattr(getattr(module, alias.name, None), "__module__", "")) for alias in node.names
        ]
        if not all(home.startswith(package + ".") for _, home in found):
            continue
        indent = lines[node.lineno - 1][: node.col_offset]
        lines[node.lineno - 1 : node.end_lineno] = [
            f"{indent}from .{home.removeprefix(package + '.')} import {alias.name}"
            + (f" as {alias.asname}" if alias.asname else "")
            for alias, home in found
        ]
    return "\n".join(lines) + "\n"
