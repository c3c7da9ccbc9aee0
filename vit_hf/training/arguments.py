"""What a fine-tuning run can be asked for, beside `AugmentationArguments`."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..model.budget import Budget
from ..model.options import Part, check_part
from .loading import ImageDataset, load_image_dataset
from .sources import MEGAPIXEL_DIGITS


# Fields of AdaptiveViTConfig that say what a model computes on, which may be changed in a checkpoint.
SELECTION_FIELDS = (
    "patch_selector",
    "num_selected_patches",
    "token_reducer",
    "keep_rate",
    "reduction_layers",
)


@dataclass(kw_only=True)
class SelectionArguments:
    """What a checkpoint computes on, instead of what its config says."""

    patch_selector: dict | str | None = field(
        default=None,
        metadata={
            "help": 'another than the checkpoint\'s, or none for all patches; with options as JSON, such as \'{"type": "attention", "num_layers": 2}\''
        },
    )
    num_selected_patches: float | str | None = field(
        default=None, metadata={"help": "another number (98) or share (0.25) than the checkpoint's"}
    )
    token_reducer: dict | str | None = field(
        default=None,
        metadata={
            "help": "another than the checkpoint's (merge, attentive or sample need no training), or none; with options as JSON, "
            'such as \'{"type": "merge", "r": 16}\''
        },
    )
    keep_rate: float | None = field(
        default=None,
        metadata={"help": "share of the tokens that go on at each of reduction_layers, such as 0.7"},
    )
    reduction_layers: list[int] | None = field(
        default=None, metadata={"help": "blocks, from 0, at which tokens are reduced, such as 3 6 9"}
    )
    native_resolution: bool = field(
        default=False,
        metadata={"help": "do not resize images, whatever the checkpoint's image processor does"},
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "pixels a side that images are resized to; default: as the checkpoint's processor does"
        },
    )

    def __post_init__(self):
        self.num_selected_patches = parse_budget(self.num_selected_patches)
        for name in ("patch_selector", "token_reducer"):
            setattr(self, name, parse_part(name, getattr(self, name)))
        if self.native_resolution and self.image_size:
            raise ValueError("native_resolution and image_size exclude each other; give one")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it must be at least 1 pixel")

    def changes(self) -> dict[str, Any]:
        """What `load_classifier` is to change in a checkpoint: that was asked for."""
        size = "native" if self.native_resolution else self.image_size
        return given_fields(self, SELECTION_FIELDS) | ({"resolution": size} if size else {})


@dataclass
class ArchitectureArguments:
    """Which model, and at what size it sees images."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "checkpoint, ours or any ViT or Swin of transformers, local or on the Hub; without it a model from scratch"
        },
    )
    config_overrides: dict | str | None = field(
        default=None,
        metadata={
            "help": 'fields of AdaptiveViTConfig (of a Swin, AdaptiveSwinConfig) as JSON, such as \'{"hidden_size": 192, "drop_path_rate": 0.1}\''
        },
    )
    position_encoding: dict | str | None = field(
        default=None,
        metadata={
            "help": "such as learned, sinusoidal_2d or rotary, or with options as JSON, such as "
            '\'{"type": "rotary", "base": 10}\'; default: as in the checkpoint'
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "pixels a side that images are resized to; default: as in the checkpoint, or 224"},
    )
    native_resolution: bool = field(default=False, metadata={"help": "do not resize images"})
    longest_edge: int | None = field(
        default=None,
        metadata={"help": "shrink images whose longer side has more pixels, and resize no others"},
    )
    return_patches: bool = field(
        default=False,
        metadata={
            "help": "cut (and by a pixel heuristic select) patches in the data loader; needed for images of mixed sizes"
        },
    )

    def __post_init__(self):
        self.config_overrides = parse_json("config_overrides", self.config_overrides)
        self.position_encoding = parse_part("position_encoding", self.position_encoding)
        given = [name for name in ("image_size", "native_resolution", "longest_edge") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one")
        for name in ("image_size", "longest_edge"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1 pixel")

    def config_fields(self) -> dict[str, Any]:
        """Fields of the config that were asked for."""
        return self.config_overrides | given_fields(self, ("position_encoding",))


@dataclass
class ModelArguments(ArchitectureArguments):
    """Which model, and what it looks at."""

    model_type: str | None = field(
        default=None,
        metadata={
            "help": "of a model from scratch: adaptive_vit, which is the default, or adaptive_swin; a checkpoint has its own"
        },
    )
    patch_selector: dict | str | None = field(
        default=None,
        metadata={
            "help": "how patches are selected before the encoder, such as variance, attention or policy, or with options as "
            'JSON, such as \'{"type": "policy", "thumbnail_size": 112}\''
        },
    )
    num_selected_patches: float | str | None = field(
        default=None,
        metadata={
            "help": "patches to keep: a number such as 98, or a share such as 0.25; of a Swin as many windows as have them"
        },
    )
    token_reducer: dict | str | None = field(
        default=None,
        metadata={
            "help": "how tokens are reduced inside the encoder: attentive, merge, gumbel or sample, or with options as JSON, "
            'such as \'{"type": "merge", "r": 16}\''
        },
    )
    keep_rate: float | None = field(
        default=None,
        metadata={"help": "share of the tokens that go on at each of reduction_layers, such as 0.7"},
    )
    reduction_layers: list[int] | None = field(
        default=None,
        metadata={"help": "blocks, from 0, at which tokens are reduced, such as 3 6 9, which is the default"},
    )

    def __post_init__(self):
        super().__post_init__()
        self.num_selected_patches = parse_budget(self.num_selected_patches)
        for name in ("patch_selector", "token_reducer"):
            setattr(self, name, parse_part(name, getattr(self, name)))

    def config_fields(self) -> dict[str, Any]:
        """Fields of the config that were asked for."""
        return super().config_fields() | given_fields(self, SELECTION_FIELDS)


@dataclass
class DataArguments:
    """Which images."""

    _argument_group_name = "data"

    dataset: str = field(
        metadata={
            "help": "folder of images (a subfolder for each class, whatever folders are in it; optionally "
            "under train, validation, "
            f"test), parquet, CSV or JSON, folder of save_to_disk, name on the Hub, or {MEGAPIXEL_DIGITS}"
        }
    )
    dataset_options: dict | str | None = field(
        default=None,
        metadata={
            "help": 'for datasets.load_dataset or vit_hf.data.megapixel_digits, as JSON: \'{"size": 1024, "task": "max"}\''
        },
    )
    image_column: str | None = field(default=None, metadata={"help": "default: the only one with images"})
    label_column: str | None = field(
        default=None, metadata={"help": "default: label or labels, or the only one beside the images"}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "of each class in train, held out if the data have no validation split"},
    )
    validation_seed: int = field(default=0, metadata={"help": "of drawing them"})
    skip_corrupt: bool = field(
        default=False,
        metadata={"help": "leave damaged images out instead of failing; decodes all of them first"},
    )

    def __post_init__(self):
        self.dataset_options = parse_json("dataset_options", self.dataset_options)

    def load(self, **changes: Any) -> ImageDataset:
        """Load the data; `changes` are arguments of `load_image_dataset` that differ."""
        arguments = {
            "image_column": self.image_column,
            "label_column": self.label_column,
            "validation_fraction": self.validation_fraction,
            "seed": self.validation_seed,
            "skip_corrupt": self.skip_corrupt,
        }
        # dataset_options may have a seed of its own, of the digits.
        return load_image_dataset(self.dataset, **(arguments | changes), options=self.dataset_options)


@dataclass
class TrainingMethodArguments:
    """Options of fine-tuning that all tasks share."""

    keep_rate_schedule: bool = field(
        default=False,
        metadata={
            "help": "start with all patches and tokens and reduce them gradually to num_selected_patches and "
            "keep_rate"
        },
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "factor of the learning rate from a layer to the one below; 0.65 to 0.8 is usual"},
    )
    backbone_lr_factor: float = field(
        default=1.0,
        metadata={
            "help": "factor of the learning rate for all but the head (decoder, detector), patch selector and "
            "token reducer, beside that of layer_decay; DynamicViT uses 0.01, DETR 0.1"
        },
    )


@dataclass
class DenseTaskArguments(TrainingMethodArguments):
    """Options of segmentation and detection, whose labels are mirrored with the images."""

    horizontal_flip: float = field(default=0.0, metadata={"help": "probability of mirroring left and right"})

    def __post_init__(self):
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip is {self.horizontal_flip}; it is a probability, from 0 to 1")


@dataclass
class FinetuningArguments(TrainingMethodArguments):
    """Options of fine-tuning for classification, beyond those of Trainer."""

    _argument_group_name = "fine-tuning"

    keep_rate_warmup: float = field(
        default=0.1, metadata={"help": "fraction of the steps with all patches, for keep_rate_schedule"}
    )
    keep_rate_final: float = field(
        default=0.2,
        metadata={"help": "fraction of the steps with as few as requested, for keep_rate_schedule"},
    )
    keep_rate_initial: float = field(
        default=1.0,
        metadata={
            "help": "where keep_rate_schedule starts: 1 is all patches, 0.5 half-way from the target; for "
            "images whose patches do not all fit into memory"
        },
    )
    freeze_backbone_ratio: float = field(
        default=0.0,
        metadata={
            "help": "fraction of the steps, at the beginning, in which only head, patch selector and token "
            "reducer learn; 0 trains all together"
        },
    )
    freeze_head: bool = field(
        default=False,
        metadata={"help": "freeze the head with the backbone, if it knows these classes already"},
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "average the weights; each step keeps this fraction of the average, such as 0.999"},
    )

    def __post_init__(self):
        if self.freeze_head and not self.freeze_backbone_ratio:
            raise ValueError(
                "freeze_head goes with freeze_backbone_ratio, which is 0: set it, such as to 0.3"
            )


@dataclass
class RunArguments(TrainingArguments):
    """Trainer's own arguments, some with other defaults."""

    _argument_group_name = "Trainer"

    output_dir: str = field(metadata={"help": "folder for checkpoints and results; a run in it is resumed"})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "do not resume the run in output_dir: rename it to <output_dir>-previous-1 and start over"
        },
    )
    eval_strategy: IntervalStrategy | str = field(default="epoch", metadata={"help": "when to evaluate"})
    save_strategy: SaveStrategy | str = field(default="epoch", metadata={"help": "when to save a checkpoint"})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "checkpoints to keep: the last ones, and always the best"}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "end with the best checkpoint and not with the last"}
    )
    metric_for_best_model: str | None = field(
        default="auto",
        metadata={"help": "auto: accuracy, for several labels an image f1, for a regression mse"},
    )
    max_grad_norm: float = field(
        default=1.0,
        metadata={"help": "scale gradients down to this norm, over all parameters together; 0: do not"},
    )
    hub_license: str | None = field(
        default=None,
        metadata={"help": "of the model, for its card, such as apache-2.0; default: that of the checkpoint"},
    )
    hub_examples: list[str] | None = field(
        default=None, metadata={"help": "images for the model card, which push_to_hub publishes with it"}
    )
    # Columns that no model takes are what the collator makes its input from.
    remove_unused_columns: bool = field(default=False, metadata={"help": "must be false here"})

    def __post_init__(self):
        strategies = (IntervalStrategy(self.eval_strategy), SaveStrategy(self.save_strategy))
        if IntervalStrategy.NO in strategies or SaveStrategy.NO in strategies:
            self.load_best_model_at_end = False
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns must be false: the images are a column that no model takes"
            )
        if self.resume_from_checkpoint:
            raise ValueError(
                "resume_from_checkpoint is not needed: the run in output_dir is resumed by itself. To begin with the "
                "weights of another run, give that as model_name_or_path"
            )
        if not torch.accelerator.is_available():
            # Nothing to pin memory for, and torch would warn of each loader.
            self.dataloader_pin_memory = False
        super().__post_init__()


def given_fields(arguments: Any, names: Iterable[str]) -> dict[str, Any]:
    """Those attributes that are not None."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def parse_json(name: str, value: dict | str | None) -> dict[str, Any]:
    """A JSON object given as text.

    Raises:
        ValueError: if it is none.
    """
    if value is None or isinstance(value, dict):
        return value or {}
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name} is no JSON ({error}): {value}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{name} must be a JSON object such as '{{\"name\": 1}}', not {value}")
    return parsed


def parse_part(name: str, value: dict | str | None) -> Part | None:
    """A part of a model: its name, or a JSON object of the name as `type` and options.

    Raises:
        ValueError: for an object without a type, or text that begins as one and is none.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parse_json(name, value)
    check_part(name, value)
    return value


def parse_budget(value: float | str | None) -> int | float | None:
    """A number of patches, or a fraction with a decimal point: "98" or "0.25".

    Raises:
        ValueError: if it is neither.
    """
    return None if value is None else Budget.parse(value).value
