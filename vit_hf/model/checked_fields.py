"""Fields of a configuration that hold however they arrive: labels, and names that exist.

Constructor, `from_pretrained` keywords, assignments and `config.json` all end here.
"""

from collections.abc import Mapping
from typing import Any

from .field_names import check_field_names, own_fields


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
    """Whether class names are those that transformers gives for want of others."""
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
