"""Arguments of `Trainer`, with the defaults of this package."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy


@dataclass
class RunArguments(TrainingArguments):
    """Arguments of `Trainer`, some with other defaults."""

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
    # The collator reads columns that no model takes.
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


@dataclass
class DistillationRunArguments(RunArguments):
    """Arguments of Trainer whose defaults do not collapse."""

    learning_rate: float = field(default=1e-5, metadata={"help": "peak learning rate of AdamW"})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "steps of a linear warm-up; below 1, a fraction of all steps"}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "schedule of the learning rate"})
    metric_for_best_model: str | None = field(
        default="auto", metadata={"help": "auto: fidelity, the mean of image_cosine over fractions"}
    )
    eval_on_start: bool = field(
        default=True, metadata={"help": "measure fidelity before training as well, for comparison"}
    )
