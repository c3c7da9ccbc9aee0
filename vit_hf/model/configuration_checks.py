"""Checks of configurations, whatever way their fields arrive. Needs no torch."""

import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import CodeType
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import is_torch_available

from .budget import Budget
from .options import as_json, check_part, type_of
from .sizes import check_layer_sizes, check_thumbnail, has_frames, patch_sides, to_pair


# From this similarity on (of `difflib`), an unknown name is taken for a misspelt one.
SIMILARITY = 0.8
# Names of timm and others, and those of transformers.
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


LABEL_FIELDS = ("num_labels", "id2label", "label2id")
DEFAULT_NUM_LABELS = 2  # as in transformers


class CheckedFields:
    """Stands before `PreTrainedConfig`: numbers in labels, names that match them, and misspelt fields
    refused."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "num_labels" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ValueError(f"num_labels={value!r} must be a whole number of at least 0.")
        if name == "id2label" and isinstance(value, Mapping):
            value = numbered(value)
        if name == "label2id" and isinstance(value, Mapping):
            value = {label: to_number(name, number) for label, number in value.items()}
        super().__setattr__(name, value)
        # The other direction follows, so that none is left over from another set of classes.
        if name == "id2label" and value is not None and getattr(self, "_post_init_done", False):
            super().__setattr__("label2id", inverted(value))

    def __post_init__(self, _is_stored: bool = False, **kwargs):
        number = kwargs.get("num_labels")
        if self.id2label is None and self.label2id is not None:
            self.id2label = {number: label for label, number in self.label2id.items()}
        if self.id2label is not None and number is not None and number != len(self.id2label):
            raise ValueError(
                f"num_labels={number}, but the labels are {len(self.id2label)}: "
                f"{show(self.id2label)}. Give one of them, "
                "or both for the same classes."
            )
        kwargs.pop("num_labels" if self.id2label is not None else None, None)
        super().__post_init__(**kwargs)
        # What transformers reads itself became no attribute; a file may hold what somebody noted in it.
        names = [name for name in kwargs if name in vars(self)]
        check_field_names(self, names, all_are_ours=not _is_stored)
        check_label_fields(self)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers, but that given label fields replace all of the stored ones, and fields of
        own classes count."""
        given = {name: kwargs.pop(name) for name in LABEL_FIELDS if kwargs.get(name) is not None}
        stored = config_dict.get("id2label")
        number = config_dict.get("num_labels", DEFAULT_NUM_LABELS) if stored is None else len(stored)
        if given and given != {"num_labels": number}:
            config_dict = {name: value for name, value in config_dict.items() if name not in LABEL_FIELDS}
            config_dict |= given
        return_unused = kwargs.pop("return_unused_kwargs", False)
        config, unused = super().from_dict(
            {**config_dict, "_is_stored": True}, return_unused_kwargs=True, **kwargs
        )
        for name in unused.keys() & (own_fields(config) or set()):
            setattr(config, name, unused.pop(name))
        check_field_names(config, unused)
        return (config, unused) if return_unused else config


def to_number(field: str, value: Any) -> int:
    """A class number, which JSON may hold as a string."""
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{field} has {value!r} where the number of a class is needed.") from None


def numbered(id2label: Mapping[Any, str]) -> dict[int, str]:
    """Class names by number, in order."""
    names = {to_number("id2label", number): label for number, label in id2label.items()}
    return {number: names[number] for number in sorted(names)}


def inverted(id2label: Mapping[int, str]) -> dict[str, int]:
    """Numbers by class name."""
    return {label: number for number, label in id2label.items()}


def show(labels: Mapping[Any, Any]) -> str:
    """The first few entries."""
    some = ", ".join(f"{key!r}: {value!r}" for key, value in list(labels.items())[:3])
    return f"{{{some}{', ...' if len(labels) > 3 else ''}}}"


def is_placeholder(names: Any) -> bool:
    """Returns whether class names are the placeholders of transformers."""
    return all(label == f"LABEL_{number}" for number, label in enumerate(names))


def check_label_fields(config) -> None:
    """Checks that labels are numbered from 0, that both directions say the same, and that a loss can learn
    from them.

    Where one direction has only placeholders (LABEL_0, ...), the other holds.

    Raises:
        ValueError: naming what does not fit.
    """
    if config.id2label is None:
        return
    names = numbered(config.id2label)  # changed in place, it may have strings again
    numbers = config.label2id
    if numbers is not None and len(numbers) == len(names) and is_placeholder(names.values()):
        candidate = numbered({number: label for label, number in numbers.items()})
        names = candidate if len(candidate) == len(names) else names
    if list(names) != list(range(len(names))):
        raise ValueError(
            f"id2label={show(names)} must number its {len(names)} classes from 0 to {len(names) - 1}."
        )
    if names != config.id2label:
        config.id2label = names
    if numbers is None or is_placeholder(numbers):
        numbers = config.label2id = inverted(names)
    if numbers.keys() != set(names.values()) or any(names.get(numbers[name]) != name for name in numbers):
        raise ValueError(
            f"id2label={show(names)} and label2id={show(numbers)} disagree. Set id2label, and "
            "label2id follows."
        )
    check_problem_type(config)


def check_problem_type(config) -> None:
    """Refuses a cross entropy over one class, which is 0 for any weights.

    Raises:
        ValueError: naming both fields.
    """
    if config.problem_type == "single_label_classification" and config.num_labels == 1:
        raise ValueError(
            "problem_type='single_label_classification' with num_labels=1 has a loss of 0 for "
            "any weights: use num_labels=2 "
            "for a yes or no, or problem_type='multi_label_classification' or 'regression' for a "
            "single output."
        )


def drop_defaults(config: PreTrainedConfig, stock: type[PreTrainedConfig]) -> dict[str, Any]:
    """Values of a configuration as they are saved.

    Args:
        config: the configuration.
        stock: configuration of transformers' model of the same family, whose fields are always saved, as
            transformers saves them.
    """
    defaults = {entry.name: as_json(entry.default) for entry in fields(config)}
    defaults |= {"out_features": None, "out_indices": None}
    kept = {entry.name for entry in fields(stock)}
    return {
        name: value
        for name, value in PreTrainedConfig.to_diff_dict(config).items()
        if name in kept or name not in defaults or value != defaults[name]
    }


def check_blocks(config) -> None:
    """Blocks and head."""
    for name in (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "num_channels",
    ):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1.")
    check_layer_sizes(config)
    for name in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must lie in [0, 1).")
    if config.layerscale_value is not None and not math.isfinite(config.layerscale_value):
        raise ValueError(f"layerscale_value={config.layerscale_value} must be a finite number, or None.")
    if config.pooling == "cls+register" and config.num_register_tokens < 1:
        raise ValueError("pooling='cls+register' needs num_register_tokens of at least 1.")
    if config.pooling == "map" and config.pooler not in (None, "map"):
        raise ValueError(
            f"pooler={config.pooler!r} and pooling='map' differ, but one learned query serves "
            "both: pass pooler=None."
        )
    if not config.use_cls_token:
        for field, values in (("pooling", ("cls", "cls+mean", "cls+register")), ("pooler", ("dense", "cls"))):
            if getattr(config, field) in values:
                raise ValueError(
                    f"{field}={getattr(config, field)!r} needs the CLS token, which "
                    "use_cls_token=False leaves out: "
                    "choose another."
                )
    if config.classifier_hidden_size is not None and config.classifier_hidden_size < 1:
        raise ValueError(
            f"classifier_hidden_size={config.classifier_hidden_size} must be at least 1, or None "
            "for no layer."
        )
    if type_of(config.final_norm) == "pooled" and config.pooling in ("cls+mean", "cls+register"):
        raise ValueError(
            f"final_norm='pooled' norms one vector, and pooling={config.pooling!r} gives two: use "
            "final_norm='tokens'."
        )
    if config.num_register_tokens < 0:
        raise ValueError(f"num_register_tokens={config.num_register_tokens} must be 0 or more.")


def check_sizes(config) -> None:
    """Checks images, patches and the thumbnail that goes through the encoder."""
    for name in ("image_size", "patch_size"):
        value = getattr(config, name)
        if not isinstance(value, int) and len(value) != 2:
            raise ValueError(f"{name}={value} must be a number of pixels or a pair (height, width).")
        if min(to_pair(value)) < 1:
            raise ValueError(f"{name}={value} must be at least one pixel a side.")
    sides = zip(to_pair(config.image_size), to_pair(config.patch_size), strict=True)
    if any(side < patch for side, patch in sides):
        raise ValueError(
            f"image_size={config.image_size} is smaller than one patch of patch_size={config.patch_size}."
        )


def check_volumes(config) -> None:
    """Checks videos and volumes, which `num_frames` says there are."""
    if not has_frames(config):
        return
    if config.tubelet_size < 1:
        raise ValueError(f"tubelet_size={config.tubelet_size} must be at least 1 frame (or slice) a patch.")
    if config.num_frames < config.tubelet_size:
        raise ValueError(
            f"num_frames={config.num_frames} is less than one patch of "
            f"tubelet_size={config.tubelet_size} frames (or slices)."
        )
    if config.backbone_config is not None:
        raise ValueError(
            f"The CNN of backbone_config reads images, and num_frames={config.num_frames} makes "
            "them videos or volumes: "
            "leave out one of them."
        )


def check_selection(config) -> None:
    """Checks patch selection, before the encoder, but for the selector itself."""
    number = config.num_selected_patches
    if config.patch_selector is not None and number is None:
        raise ValueError(
            f"patch_selector={type_of(config.patch_selector)!r} needs num_selected_patches: a "
            "number of patches >= 1, or a "
            "fraction of them in (0, 1]."
        )
    if number is not None:
        Budget(number)
    if config.thumbnail_context is not False:
        check_thumbnail(config, "thumbnail_context", config.thumbnail_context, patch_sides(config))


def check_reduction(config) -> None:
    """Checks token reduction, inside the encoder, but for the reducer itself."""
    if not 0 < config.keep_rate <= 1:
        raise ValueError(f"keep_rate={config.keep_rate} is a fraction of the tokens and must lie in (0, 1].")
    if config.token_reducer is None:
        return
    layers = list(config.reduction_layers)
    if (
        not layers
        or len(set(layers)) < len(layers)
        or not all(0 <= layer < config.num_hidden_layers for layer in layers)
    ):
        raise ValueError(
            f"reduction_layers={layers} must be different blocks from 0 to {config.num_hidden_layers - 1}."
        )


def check_forms(config, parts: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Checks that fields of parts are names, or dictionaries with one, and that other groups of options
    have none."""
    for field in parts:
        check_part(field, getattr(config, field))
    for field in groups:
        if "type" in (getattr(config, field) or {}):
            raise ValueError(
                f"{field}={getattr(config, field)} has no option 'type': give its options alone."
            )
