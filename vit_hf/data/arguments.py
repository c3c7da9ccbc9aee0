"""Arguments that choose the images of a command."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .loading import ImageDataset, load_image_dataset
from .sources import MEGAPIXEL_DIGITS


def given_fields(arguments: Any, names: Iterable[str]) -> dict[str, Any]:
    """Returns the named attributes that are not None."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def parse_json(name: str, value: dict | str | None) -> dict[str, Any]:
    """Parses a JSON object given as text; a dict passes unchanged.

    Raises:
        ValueError: if it is none.
    """
    if value is None or isinstance(value, dict):
        return value or {}
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON ({error}): {value}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{name} must be a JSON object such as '{{\"name\": 1}}', not {value}")
    return parsed


@dataclass
class DataArguments:
    """Arguments that choose the images and their labels."""

    _argument_group_name = "data"

    dataset: str = field(
        metadata={
            "help": "folder of images (a subfolder for each class, nested folders allowed; optionally "
            "under train, validation, test), parquet, CSV or JSON, folder of save_to_disk, name on the Hub, "
            f"or {MEGAPIXEL_DIGITS}"
        }
    )
    dataset_options: dict | str | None = field(
        default=None,
        metadata={
            "help": 'for datasets.load_dataset or vit_hf.data.megapixel_digits, as JSON: \'{"size": '
            '1024, "task": "max"}\''
        },
    )
    image_column: str | None = field(default=None, metadata={"help": "default: the only one with images"})
    label_column: str | None = field(
        default=None, metadata={"help": "default: label or labels, or the only other column"}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "fraction of each class in train, held out if the data have no validation split"},
    )
    validation_seed: int = field(default=0, metadata={"help": "seed of that draw"})
    skip_corrupt: bool = field(
        default=False,
        metadata={"help": "leave damaged images out instead of failing; decodes all of them first"},
    )

    def __post_init__(self):
        self.dataset_options = parse_json("dataset_options", self.dataset_options)

    def load(self, **changes: Any) -> ImageDataset:
        """Loads the data; `changes` override arguments of `load_image_dataset`."""
        arguments = {
            "image_column": self.image_column,
            "label_column": self.label_column,
            "validation_fraction": self.validation_fraction,
            "seed": self.validation_seed,
            "skip_corrupt": self.skip_corrupt,
        }
        # dataset_options may have a seed of its own, of the digits.
        return load_image_dataset(self.dataset, **(arguments | changes), options=self.dataset_options)
