"""Looks up and registers position encodings, patch selectors and token reducers, built-in or user-defined.

A field of the configuration may name a class of its table, one that a decorator registered, or one of a
module, `"my_positions.MyEncoding"`. Its file is saved with the model; a checkpoint with such a file loads
with `trust_remote_code=True`, or where the class was imported already.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from transformers.dynamic_module_utils import get_class_from_dynamic_module

from .options import read_options, shorten, type_of
from .positions import POSITION_ENCODINGS, VOLUME_ENCODINGS
from .reducers import TOKEN_REDUCERS
from .selectors import PATCH_SELECTORS, VOLUME_SELECTORS
from .sizes import has_frames


TABLES: dict[str, dict[str, type]] = {
    "position_encoding": POSITION_ENCODINGS,
    "patch_selector": PATCH_SELECTORS,
    "token_reducer": TOKEN_REDUCERS,
}
# What is for videos and volumes alone, and what is not for them, with what is instead.
VOLUME_TABLES: dict[str, dict[str, type]] = {
    "position_encoding": VOLUME_ENCODINGS,
    "patch_selector": VOLUME_SELECTORS,
    "token_reducer": {},
}
IMAGE_ONLY = {"position_encoding": {"sinusoidal_2d": "sinusoidal_3d"}}
BASES = {
    "position_encoding": "PositionEncoding",
    "patch_selector": "PatchSelector",
    "token_reducer": "TokenReducer",
}
BUILT_IN = {field: frozenset(table) | VOLUME_TABLES[field].keys() for field, table in TABLES.items()}
# Classes that came with checkpoints, by field, name and checkpoint: two may give the same name to different
# ones.
FETCHED: dict[tuple[str, str, str], type] = {}
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
    if not isinstance(name, str):
        raise ValueError(f'Give it a name: @register_{field}("my_name").')
    if name in BUILT_IN[field]:
        raise ValueError(f"{name!r} is the name of a {field} of vit_hf: choose another.")
    if "." in name or not name:
        raise ValueError(f"{name!r} must be a name without a dot: with one it would be a class of a module.")

    def decorate(cls: AnyClass) -> AnyClass:
        TABLES[field][name] = check_class(field, name, cls)
        return cls

    return decorate


def derives_from(cls: type, base: str) -> bool:
    """Tells whether a class has a base of that name; a base may be loaded twice, from package and
    checkpoint."""
    return any(parent.__name__ == base for parent in cls.__mro__)


def check_class(field: str, name: str, cls: Any) -> type:
    """Checks and returns a class.

    Raises:
        ValueError: if it is no class for the field.
    """
    if not isinstance(cls, type) or not derives_from(cls, BASES[field]):
        raise ValueError(f"{field}={name!r} must be a class derived from vit_hf.{BASES[field]}, got {cls!r}.")
    return cls


def table_of(config, field: str) -> dict[str, type]:
    """Classes that a field may name, for images or for videos."""
    if not has_frames(config):
        return TABLES[field]
    of_images = IMAGE_ONLY.get(field, {})
    fit = {name: cls for name, cls in TABLES[field].items() if name not in of_images}
    return fit | VOLUME_TABLES[field]


def is_known(config, field: str) -> bool:
    """Tells whether the class that a field names is known, or may be in a module or a checkpoint's file."""
    name = type_of(getattr(config, field))
    shipped = getattr(config, "auto_map", None) or {}
    return name in table_of(config, field) or "." in name.strip(".") or field in shipped


def find_class(config, field: str) -> type | None:
    """Finds the class that a field of the configuration names; None if it names none.

    Raises:
        ValueError: if there is no such class.
    """
    name, table = type_of(getattr(config, field)), table_of(config, field)
    if name is None or name in table:
        return table.get(name)
    cls = FETCHED.get((field, name, str(config._name_or_path))) or shipped_classes().get(name)
    if cls is None:
        if config._name_or_path and not _is_loaded(name):
            _require_trust(config._name_or_path, field, name, getattr(config, "auto_map", None))
        cls = import_class(field, name)
    return check_class(field, name, cls)


def check_options(config, field: str) -> None:
    """Checks a part's options, and leaves out of the configuration those that are equal to their defaults.

    A class that is yet to be imported is checked when the model is built.

    Raises:
        ValueError: for options that the part does not have, or that do not fit.
    """
    part = getattr(config, field)
    name = type_of(part)
    is_here = name in table_of(config, field) or name in shipped_classes() or _is_loaded(name)
    if not is_here and (field, name, str(config._name_or_path)) not in FETCHED:
        return
    cls = find_class(config, field)
    options = read_options(cls.Options, field, part)
    cls.check(config, options)
    shorten(config, field, options)


def _is_loaded(name: str) -> bool:
    return name.rpartition(".")[0] in sys.modules


def _require_trust(source: str, field: str, name: str, auto_map: Mapping[str, Any] | None) -> None:
    if field not in (auto_map or {}):
        raise ValueError(
            f"{source} has {field}={name!r}, which is not a class of vit_hf, and carries no code of it: when "
            "it was saved, the class was in no file, but in a notebook, a function or the script that ran. "
            "Define or import the class first; to save a checkpoint that loads elsewhere, put the class into "
            "a file of its own, import it from there, and save again."
        )
    raise ValueError(
        f"{source} has {field}={name!r}, which is not a class of vit_hf. Import the file that "
        "defines it, or, having read "
        "the code that came with the checkpoint, pass trust_remote_code=True to from_pretrained."
    )


def shipped_classes() -> dict[str, type]:
    """Returns the author's own classes that came with this code, by their names in the configuration."""
    return {}


def import_class(field: str, name: str) -> Any:
    """Imports a class that the caller named, from its module."""
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
            f"{field}={name!r}: there is no module {module!r} on Python's path. Start where "
            f"{module}.py is, or add its "
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
        ValueError: if a class would have to be taken from the checkpoint, or imported because of it, without
            trust.
    """
    for field, table in TABLES.items():
        name = type_of(values.get(field))
        if (
            name is None
            or name in table
            or name in BUILT_IN[field]
            or name in shipped_classes()
            or _is_loaded(name)
        ):
            continue
        reference = (values.get("auto_map") or {}).get(field)
        if not trust or (reference is None and "." not in name):
            _require_trust(source, field, name, values.get("auto_map"))
        if reference is None:
            cls = import_class(field, name)
        else:
            hub = {key: value for key, value in options.items() if key in HUB_OPTIONS}
            cls = get_class_from_dynamic_module(reference, source, **hub)
        FETCHED[field, name, source] = check_class(field, name, cls)


def classes_of(model) -> dict[str, type]:
    """Classes of a model's parts that are not built in, by field."""
    return {
        field: type(part)
        for field, part in model.pluggable_parts().items()
        if part is not None and type_of(getattr(model.config, field)) not in BUILT_IN[field]
    }
