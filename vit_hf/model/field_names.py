"""Misspelt names: of a configuration's fields and of an image processor's options."""

import difflib
import sys
from collections.abc import Iterable
from types import CodeType

from transformers.utils import is_torch_available

from .options import type_of


# From this similarity on (of `difflib`), an unknown name is taken for a misspelt one.
SIMILARITY = 0.8
# What timm and others call what transformers names otherwise.
SYNONYMS = {
    "num_classes": "num_labels",
    "img_size": "image_size",
    "in_chans": "num_channels",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "drop_path": "drop_path_rate",
}
# Names that are something else: arguments of models, a field that stock Swins store, one that quantizers set.
OTHERS = frozenset({"use_mask_token", "add_pooling_layer", "path_norm", "quantization_config"})


def check_names(names: Iterable[str], legal: Iterable[str], owner: str) -> None:
    """Refuses names that are probably misspelt. Names unlike any legal one pass.

    Args:
        names: unknown names.
        legal: what may have been meant.
        owner: whose names they are, for the message.

    Raises:
        ValueError: naming the legal one.
    """
    legal = sorted(legal)
    for name in names:
        if name.startswith("_") or name in OTHERS:
            continue
        meant = [SYNONYMS[name]] if SYNONYMS.get(name) in legal else []
        meant = meant or difflib.get_close_matches(name, legal, n=1, cutoff=SIMILARITY)
        if meant:
            raise ValueError(f"{owner} has no {name!r}: did you mean {meant[0]!r}?")


def check_field_names(config, names: Iterable[str], all_are_ours: bool = False) -> None:
    """Refuses names that are probably misspelt fields, or options of parts; fields that a user's own class
    reads are allowed.

    Args:
        config: whose fields they are.
        names: some of them.
        all_are_ours: whether every name must be a field that something reads. What users note in a
            configuration, and what is stored in a file, may have other names.

    Raises:
        ValueError: naming the field that was probably meant, or the part that has the option.
    """
    cls = type(config)
    fields = [name for name in cls.__dataclass_fields__ if not name.startswith("_")]
    fields += ["num_labels", "output_attentions", "out_features", "out_indices"]
    unknown = [name for name in names if name not in fields and not hasattr(cls, name)]
    if not unknown:
        return
    own = own_fields(config)
    if own is None:  # a class that is not loaded yet: the fields are checked when a model is built
        return
    others = {*own, *OTHERS, *getattr(cls, "_refused_fields", ())}
    unknown = [name for name in unknown if name not in others and not name.startswith("_")]
    # Very similar names first: `keep_rates` is an option as well, and more probably the field.
    check_names(
        [name for name in unknown if difflib.get_close_matches(name, fields, 1, 0.9)], fields, cls.__name__
    )
    for name in unknown:
        if parts := _parts_with(config, name, all_are_ours):
            raise ValueError(
                f"{cls.__name__} has no {name!r}, which looks like an option of a part: an option "
                "stands in the "
                f"dictionary of its part, such as {' or '.join(parts)}."
            )
    check_names(unknown, fields, cls.__name__)
    if all_are_ours and unknown:
        raise ValueError(
            f"{cls.__name__} has no {unknown[0]!r}, and nothing reads it. Options of parts stand "
            "in dictionaries, such as "
            'position_encoding={"type": "rotary", "base": 10.0}.'
        )


def _parts_with(config, name: str, any_prefix: bool) -> list[str]:
    """Parts with an option that a name ends in, as a configuration would give them; at most three.

    Args:
        config: that has the name.
        name: unknown field.
        any_prefix: whether anything may stand before the option, or only what names the part: others' fields,
            such as `rms_norm_eps`, end alike.
    """
    if not is_torch_available():  # the classes need it
        return []
    from .part_checks import options_classes

    found = []
    for field, kind, options_class in options_classes():
        owners = {kind or field, field, field.partition("_")[0]}
        for option in options_class.__dataclass_fields__ if hasattr(config, field) else ():
            prefix = name.removesuffix(f"_{option}")
            is_whole = name == option and (
                any_prefix or "_" in option or len(option) > 7
            )  # not `seed` or `base`
            if is_whole or (prefix != name and (prefix in owners or (any_prefix and len(option) > 2))):
                part = f'"type": "{kind}", ' if kind else ""
                found.append((prefix not in owners, -len(option), f'{field}={{{part}"{option}": ...}}'))
    return [text for *_, text in sorted(found)[:3]]


def own_fields(config) -> set[str] | None:
    """Names that the code of the user's own classes holds, as far as a configuration names such; None if
    not loaded."""
    if not is_torch_available():  # the classes need it
        return None
    from .registry import BUILT_IN, TABLES

    names = set()
    for field, table in TABLES.items():
        name = type_of(getattr(config, field, None))
        if name is None or name in BUILT_IN[field]:
            continue
        cls = table.get(name) or _loaded(field, name)
        if cls is None:
            return None
        for parent in cls.__mro__:
            if parent.__module__.partition(".")[0] not in ("torch", "builtins", "abc"):
                names |= _names_in(vars(parent).values())
        module = sys.modules.get(cls.__module__)
        names |= _names_in(list(vars(module).values()) if module else [])
    return names


def _loaded(field: str, name: str) -> type | None:
    from .registry import FETCHED

    for (of_field, of_name, _), cls in FETCHED.items():
        if (of_field, of_name) == (field, name):
            return cls
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def _names_in(values: Iterable[object]) -> set[str]:
    """Attribute names and strings in the code of those values that are functions."""
    names, waiting = set(), [getattr(value, "__code__", None) for value in values]
    while waiting:
        code = waiting.pop()
        if isinstance(code, CodeType):
            names |= {*code.co_names, *(value for value in code.co_consts if isinstance(value, str))}
            waiting += code.co_consts
    return names
