"""What a fine-tuning run can be asked for, beside `AugmentationArguments`."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..checkpoints.loading import SELECTION_FIELDS, parse_budget, parse_part
from ..data.arguments import given_fields, parse_json


@dataclass
class ArchitectureArguments:
    """Which model, and at what size it sees images."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "checkpoint, ours or any ViT or Swin of transformers, local or on the Hub; without "
            "it a model from scratch"
        },
    )
    config_overrides: dict | str | None = field(
        default=None,
        metadata={
            "help": "fields of AdaptiveViTConfig (of a Swin, AdaptiveSwinConfig) as JSON, such as "
            '\'{"hidden_size": 192, "drop_path_rate": 0.1}\''
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
            "help": "cut (and by a pixel heuristic select) patches in the data loader; needed for images "
            "of mixed sizes"
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
            "help": "of a model from scratch: adaptive_vit, which is the default, or adaptive_swin; a "
            "checkpoint has its own"
        },
    )
    patch_selector: dict | str | None = field(
        default=None,
        metadata={
            "help": "how patches are selected before the encoder, such as variance, attention or policy, "
            "or with options as "
            'JSON, such as \'{"type": "policy", "thumbnail_size": 112}\''
        },
    )
    num_selected_patches: float | str | None = field(
        default=None,
        metadata={
            "help": "patches to keep: a number such as 98, or a share such as 0.25; of a Swin as many "
            "windows as have them"
        },
    )
    token_reducer: dict | str | None = field(
        default=None,
        metadata={
            "help": "how tokens are reduced inside the encoder: attentive, merge, gumbel or sample, or "
            "with options as JSON, "
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
            "help": "factor of the learning rate for all but the head (decoder, detector), patch "
            "selector and "
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
                "resume_from_checkpoint is not needed: the run in output_dir is resumed by "
                "itself. To begin with the "
                "weights of another run, give that as model_name_or_path"
            )
        if not torch.accelerator.is_available():
            # Nothing to pin memory for, and torch would warn of each loader.
            self.dataloader_pin_memory = False
        super().__post_init__()
