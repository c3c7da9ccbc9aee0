"""Options of a model's parts: how they are given, checked and kept.

Imports no PyTorch, so that configurations can be read without it.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError


# A part as a configuration names it: "rotary", or {"type": "rotary", "base": 10.0}.
Part = str | dict[str, Any]


@strict
@dataclass(kw_only=True)
class Options:
    """Options of a part that has none; those of a part that has some derive from it.

    `__post_init__` checks them by themselves; the part's `check`, against the configuration.
    """


def type_of(part: Part | None) -> str | None:
    """Name of a part; None for no part, and for options without a part to choose."""
    return part.get("type") if isinstance(part, Mapping) else part


def options_of(part: Part | None) -> dict[str, Any]:
    """Options that a configuration gives a part, without its name."""
    if not isinstance(part, Mapping):
        return {}
    return {name: value for name, value in part.items() if name != "type"}


def with_options(name: str, **options: Any) -> Part:
    """A part in its shortest form: its name alone where there are no options."""
    return {"type": name, **options} if options else name


def keep_options(
    values: Mapping[str, Any], changes: Mapping[str, Any], names: Iterable[str]
) -> dict[str, Any]:
    """Changes in which a plain name keeps the options that the same part has already; a dictionary replaces
    them.

    Args:
        values: fields of a configuration.
        changes: fields that are to be changed.
        names: fields of parts.
    """
    kept = {
        name: values[name]
        for name in names
        if isinstance(changes.get(name), str) and type_of(values.get(name)) == changes[name]
    }
    return {**changes, **kept}


def check_part(field: str, part: Any) -> None:
    """Checks that a part is a name, or a dictionary with one.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(part, Mapping) and not isinstance(part.get("type"), str):
        raise ValueError(
            f"{field}={dict(part)} needs the name of a part as its type, such as "
            f'{{"type": "...", "option": value}}.'
        )


def suggest(name: str, legal: Iterable[str]) -> str:
    """A question such as " Did you mean 'base'?" for a misspelt name; empty if no legal one is close."""
    close = difflib.get_close_matches(name, list(legal), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def read_options(options_class: type, field: str, part: Mapping[str, Any] | str | None) -> Any:
    """Checked options of a part.

    Args:
        options_class: dataclass of the part's options.
        field: field of the configuration that names the part, for errors.
        part: value of that field.

    Raises:
        ValueError: for an option that the part does not have, or a value that it cannot have.
    """
    if not is_dataclass(options_class):
        raise ValueError(
            f"{field}={type_of(part)!r}: Options of the class must be a dataclass, got {options_class!r}."
        )
    if "__validators__" not in vars(options_class):
        strict(options_class)  # a user's own dataclass is checked as ours are
    given, legal = options_of(part), [entry.name for entry in fields(options_class)]
    whose = field if type_of(part) is None else f"{field}={type_of(part)!r}"
    for name in given:
        if name not in legal:
            known = f"Its options are {sorted(legal)}." if legal else "It has no options."
            raise ValueError(f"{whose} has no option {name!r}.{suggest(name, legal)} {known}")
    numbers = {name for name, hint in get_type_hints(options_class).items() if _is_float(hint)}
    given = {
        name: float(value) if name in numbers and type(value) is int else value
        for name, value in given.items()
    }
    try:
        return options_class(**given)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"{whose}: {getattr(error, '__cause__', None) or error}") from error


def _is_float(hint: Any) -> bool:
    """Returns whether a type takes floats and no integers: a whole number is one, for whoever writes 2."""
    types = get_args(hint) or (hint,)
    return float in types and int not in types


def changed_options(options: Any) -> dict[str, Any]:
    """Options whose values differ from their defaults, as plain JSON."""
    changed = {}
    for entry in fields(options):
        value = as_json(getattr(options, entry.name))
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if default is MISSING or value != as_json(default):
            changed[entry.name] = value
    return changed


def shorten(config: Any, field: str, options: Any) -> None:
    """Leaves out of a configuration's field what is equal to the defaults, given its checked options."""
    name, changed = type_of(getattr(config, field)), changed_options(options)
    short = (changed or None) if name is None else with_options(name, **changed)
    if getattr(config, field) != short:
        setattr(config, field, short)


def as_json(value: Any) -> Any:
    """A value in which tuples are lists, as JSON has them."""
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    if isinstance(value, Mapping):
        return {name: as_json(entry) for name, entry in value.items()}
    return value


def check_positive(options: Any, *names: str) -> None:
    """Raises: ValueError for a number that is not at least 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")


def check_range(options: Any, name: str, legal: str, is_legal: bool) -> None:
    """Raises: ValueError, naming the legal values, for an option that is not legal."""
    if not is_legal:
        raise ValueError(f"{name}={getattr(options, name)} must be {legal}.")
