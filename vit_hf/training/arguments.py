"""Arguments of `Trainer` with the defaults of this package."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy


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
        default=True, metadata={"help": "end with the best checkpoint instead of the last"}
    )
    metric_for_best_model: str | None = field(
        default="auto",
        metadata={
            "help": "metric that chooses the best checkpoint; auto: accuracy, f1 for several labels, mse "
            "for regression"
        },
    )
    max_grad_norm: float = field(
        default=1.0,
        metadata={
            "help": "largest norm of the gradient over all parameters; larger ones are scaled down; 0: off"
        },
    )
    hub_license: str | None = field(
        default=None,
        metadata={
            "help": "license of the model for its card, such as apache-2.0; default: that of the checkpoint"
        },
    )
    hub_examples: list[str] | None = field(
        default=None, metadata={"help": "images for the model card, which push_to_hub publishes with it"}
    )
    # The collator makes the input of the model from columns that no model takes.
    remove_unused_columns: bool = field(default=False, metadata={"help": "must be false here"})

    def __post_init__(self):
        strategies = (IntervalStrategy(self.eval_strategy), SaveStrategy(self.save_strategy))
        if IntervalStrategy.NO in strategies or SaveStrategy.NO in strategies:
            self.load_best_model_at_end = False
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns must be false: true would remove the images, a column that no "
                "model takes"
            )
        if self.resume_from_checkpoint:
            raise ValueError(
                f"resume_from_checkpoint={self.resume_from_checkpoint!r} is not needed: the run in "
                "output_dir is resumed automatically. To start from the weights of another run, name it in "
                "model_name_or_path."
            )
        if not torch.accelerator.is_available():
            # Nothing to pin memory for, and torch would warn of each loader.
            self.dataloader_pin_memory = False
        super().__post_init__()
