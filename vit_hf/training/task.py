"""Training task and run: from arguments to a trained model, for all tasks."""

import gc
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import send_to_device
from huggingface_hub.constants import ENDPOINT
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback, TrainerState, set_seed
from transformers.image_processing_utils import BaseImageProcessor
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy
from transformers.utils.logging import disable_progress_bar

from ..model.budget import Budget
from ..model.configuration_adaptive_swin import AdaptiveSwinConfig
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.options import options_of, type_of
from .arguments import RunArguments
from .callbacks import NonFiniteGuard, ReproducibleTraining
from .hub_trainer import HubTrainer
from .model_loading import make_image_processor
from .optimizer import layerwise_parameter_groups
from .output_dir import (
    RUN_ARGUMENTS_NAME,
    check_output_dir,
    check_same_rates,
    describe_run,
    find_resumable,
    set_aside,
    set_incomplete_aside,
)


class Task(ABC):
    """Base class of training tasks, with their arguments; `prepare` makes a run of it.

    `prepare`, `make_trainer` and `Run` call the methods, of which a task overrides at least the abstract
    ones.

    Args:
        groups: all arguments except those of `Trainer`, one object for each of `argument_groups`.

    Attributes:
        evaluate_only: whether nothing is trained.
        averages_weights: whether checkpoints hold a moving average of the weights.
    """

    argument_groups: ClassVar[tuple[type, ...]]
    trainer_class: ClassVar[type[HubTrainer]] = HubTrainer
    # Takes model, learning rate, weight decay, layer decay and factor of the backbone.
    parameter_groups: ClassVar[Callable[..., list[dict[str, Any]]]] = staticmethod(layerwise_parameter_groups)

    def __init__(self, *groups: Any):
        self.groups = groups
        self.model_arguments, self.data_arguments, *augmentation, self.method = groups
        self.augmentation = augmentation[0] if augmentation else None
        self.evaluate_only = getattr(self.method, "evaluate_only", False)
        self.averages_weights = getattr(self.method, "ema_decay", None) is not None
        # Pretraining has neither of these options.
        self.layer_decay = getattr(self.method, "layer_decay", 1.0)
        self.backbone_lr_factor = getattr(self.method, "backbone_lr_factor", 1.0)

    def check(self, training: RunArguments) -> None:  # noqa: B027
        """Raises ValueError for contradicting arguments, or those of other tasks; default: none."""

    @abstractmethod
    def load_data(self) -> dict[str, Any]:
        """Loads the data and returns all splits."""

    @abstractmethod
    def make_model(self) -> PreTrainedModel:
        """Builds or loads the model; the data are loaded."""

    def make_processor(self, model: PreTrainedModel) -> BaseImageProcessor:
        """Returns the image processor of the model, which may select patches unless a schedule does."""
        select = not getattr(self.method, "keep_rate_schedule", False)
        return make_image_processor(self.model_arguments, model.config, select=select)

    @abstractmethod
    def examples(
        self, model: PreTrainedModel, processor: BaseImageProcessor, training: RunArguments
    ) -> dict[str, Dataset]:
        """Returns the data sets of `Trainer`, by split."""

    @abstractmethod
    def collator(
        self, processor: BaseImageProcessor, training: RunArguments
    ) -> Callable[[list[dict]], dict[str, Any]]:
        """Returns the function that makes a batch of examples."""

    def metrics(self, model: PreTrainedModel, processor: BaseImageProcessor) -> Callable | None:
        """Returns `compute_metrics` of `Trainer`; default: None, which evaluates the loss alone."""
        return None

    def best_metric(self) -> tuple[str, bool]:
        """Returns the metric that compares checkpoints, and whether higher is better; default: the loss."""
        return "loss", False

    def callbacks(self, model: PreTrainedModel) -> list[TrainerCallback]:
        """Returns callbacks of this task, in addition to those of all tasks; default: none."""
        return []

    def adjust(self, model: PreTrainedModel, training: RunArguments) -> None:  # noqa: B027
        """Sets those arguments of `Trainer` that the task decides; default: none."""

    @abstractmethod
    def describe(self, model: PreTrainedModel, examples: dict[str, Dataset]) -> tuple[str, list[str], str]:
        """Returns a line about the data, notes about excluded data, and a line about the model."""

    def finish(self, trainer: HubTrainer, examples: dict[str, Dataset]) -> None:  # noqa: B027
        """Adds results to a complete run; default: none."""


@dataclass
class Run:
    """A validated run, ready to start.

    Attributes:
        task: training task, with all data.
        trainer: holds the model, the training data and the arguments.
        examples: "validation" and "test", if present, as the trainer evaluates them.
        checkpoint: checkpoint to resume from; None for a new run.
        description: lines about data and model.
    """

    task: Task
    trainer: HubTrainer
    examples: dict[str, Dataset]
    checkpoint: Path | None
    description: list[str]

    def describe(self) -> str:
        """Returns a summary of data, model and start in a few lines."""
        start = "begins" if self.checkpoint is None else f"resumes from {self.checkpoint}"
        return "\n".join([*self.description, f"Run:    {'evaluates' if self.task.evaluate_only else start}"])

    def execute(self) -> dict[str, float]:
        """Trains (or resumes), evaluates, and saves model, image processor and metrics to `output_dir`.

        Returns:
            Metrics of training (`train_`), validation (`eval_`) and test (`test_`), if present.
        """
        trainer = self.trainer
        metrics = {} if self.task.evaluate_only else self._train()
        for split, prefix in (("validation", "eval"), ("test", "test")):
            if split in self.examples:
                scores = trainer.evaluate(self.examples[split], metric_key_prefix=prefix)
                trainer.save_metrics(prefix, scores)
                metrics |= scores
        if trainer.args.push_to_hub:
            trainer.push_to_hub()
        self.task.finish(trainer, self.examples)
        return metrics

    def _train(self) -> dict[str, float]:
        # Read first, because training may delete the checkpoint as one of the older ones.
        steps_done = 0
        if self.checkpoint is not None:
            steps_done = TrainerState.load_from_json(str(self.checkpoint / TRAINER_STATE_NAME)).global_step
        trainer = self.trainer
        result = trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        # Pushed only after evaluation.
        trainer.save_model(_internal_call=True)
        trainer.save_state()
        # A run that was complete already has no training loss.
        if trainer.state.global_step <= steps_done:
            return {}
        trainer.save_metrics("train", result.metrics)
        return dict(result.metrics)


def prepare(task: Task, training: RunArguments) -> Run:
    """Prepares a new run, or one that resumes in `training.output_dir`, up to its first step.

    All arguments and data are checked here, before anything is written.

    Raises:
        ImportError: if a package that the task needs is not installed.
        OSError, TypeError, ValueError: for invalid arguments, data or output folder.
    """
    task.check(training)
    check_output_dir(training.output_dir)
    # Copied as given, because `make_trainer` changes some.
    arguments = training.to_dict()
    for group in task.groups:
        arguments |= asdict(group)
    # One process after the other, because the first fills a cache that the others read.
    with training.main_process_first():
        splits = task.load_data()
    if not task.evaluate_only:
        check_splits(splits, training)

    set_seed(training.seed)
    model = task.make_model()
    processor = task.make_processor(model)
    examples = task.examples(model, processor, training)
    checkpoint = None
    if not training.overwrite_output_dir and not task.evaluate_only:
        checkpoint = find_resumable(training.output_dir, model, task.averages_weights)
    if checkpoint is not None:
        check_same_rates(training.output_dir, arguments)
    trainer = make_trainer(task, model, processor, examples, training)
    trainer.card = describe_run(arguments) | {
        "license": training.hub_license,
        "examples": training.hub_examples or [],
    }
    check_batch(trainer)

    open_output_dir(training, arguments, checkpoint)
    data, notes, parts = task.describe(model, examples)
    description = [f"Data:   {data}", *(f"        {note}" for note in notes), f"Model:  {parts}"]
    held_out = {name: images for name, images in examples.items() if name != "train"}
    return Run(task, trainer, held_out, checkpoint, description)


def make_trainer(
    task: Task,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    examples: dict[str, Dataset],
    training: RunArguments,
) -> HubTrainer:
    """Returns the `Trainer` of a task; changes options of `training` that task or package handle."""
    collator = task.collator(processor, training)
    task.adjust(model, training)
    if training.metric_for_best_model == "auto":
        training.metric_for_best_model, training.greater_is_better = task.best_metric()
    callbacks = [ReproducibleTraining(), NonFiniteGuard(), *task.callbacks(model)]
    # After ours, not before as Trainer would put them, so that they report what ours log.
    callbacks += [callback() for callback in get_reporting_integration_callbacks(training.report_to)]
    training.report_to = []
    return task.trainer_class(
        model=model,
        args=training,
        data_collator=collator,
        # A run that only evaluates does not train on it, and `check_batch` looks at held-out images.
        train_dataset=next(iter(examples.values())) if task.evaluate_only else examples["train"],
        eval_dataset=examples.get("validation"),
        processing_class=processor,
        compute_metrics=task.metrics(model, processor),
        callbacks=callbacks,
        optimizer_cls_and_kwargs=optimizer_of(task, model, training),
    )


def optimizer_of(
    task: Task, model: PreTrainedModel, training: RunArguments
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Returns the optimizer and its arguments, with the learning rates that the task gives the layers."""
    optimizer, options = HubTrainer.get_optimizer_cls_and_kwargs(training, model)
    groups = task.parameter_groups(
        model, training.learning_rate, training.weight_decay, task.layer_decay, task.backbone_lr_factor
    )
    return optimizer, options | {"params": groups}


def check_splits(splits: dict[str, Any], training: RunArguments) -> None:
    """Raises ValueError if there is no train split, or no validation split to evaluate on."""
    if "train" not in splits:
        raise ValueError(f"the data have no train split, only {', '.join(splits)}: add or rename a split")
    if "validation" not in splits and training.eval_strategy != IntervalStrategy.NO:
        raise ValueError(
            "there is no validation split: add one, set validation_fraction above 0, or set eval_strategy "
            "to 'no'"
        )


@torch.no_grad()
def check_batch(trainer: HubTrainer) -> None:
    """Runs the model on one or two images, so that errors appear before training starts.

    Raises:
        ValueError: from the image processor or the model, for instance if images have fewer patches than
            are selected.
    """
    number = min(2, len(trainer.train_dataset), trainer.args.per_device_train_batch_size)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(number)])
    model = trainer.model.eval()
    model(**send_to_device(batch, model.device))


def open_output_dir(training: RunArguments, arguments: dict[str, Any], checkpoint: Path | None) -> None:
    """Creates the folder of a run and writes its arguments there; renames an earlier run."""
    with training.main_process_first():
        if training.process_index == 0:
            if training.overwrite_output_dir:
                set_aside(training.output_dir)
            if checkpoint is not None:
                set_incomplete_aside(training.output_dir, checkpoint)
            Path(training.output_dir).mkdir(parents=True, exist_ok=True)
            Path(training.output_dir, RUN_ARGUMENTS_NAME).write_text(json.dumps(arguments, indent=2))


def check_schedule(config: PreTrainedConfig) -> None:
    """Raises ValueError if the model neither selects patches nor reduces tokens."""
    if config.patch_selector is None and config.token_reducer is None:
        raise ValueError("keep_rate_schedule needs a patch_selector or a token_reducer.")


def describe_sizes(splits: dict[str, Any]) -> str:
    """Returns the number of images of each split."""
    return ", ".join(f"{len(images)} {split}" for split, images in splits.items()) + " images"


def describe_selection(config: AdaptiveViTConfig | AdaptiveSwinConfig) -> str:
    """Describes the patches and tokens that a model computes on."""
    is_swin = isinstance(config, AdaptiveSwinConfig)
    parts = "windows" if is_swin else "patches"
    text = f"all {parts}"
    if config.patch_selector is not None:
        number = config.num_selected_windows if is_swin else config.num_selected_patches
        is_fraction = Budget(number).is_fraction
        amount = f"{number:.1%} of the" if is_fraction else number
        where = "an image's first stage" if is_swin and not is_fraction else "an image"
        text = f"{amount} {parts} of {where} by {type_of(config.patch_selector)}"
    if config.token_reducer is not None:
        amount = f"keeps {config.keep_rate:.1%} of the tokens"
        if (merged := options_of(config.token_reducer).get("r")) is not None:
            amount = f"takes away {merged} tokens"
        layers = ", ".join(map(str, sorted(config.reduction_layers)))
        text += f"; {type_of(config.token_reducer)} {amount} in each of the blocks {layers}"
    return text


def run_task(
    task: Task, training: RunArguments, program: str, format_metrics: Callable[[dict[str, float]], str]
) -> None:
    """Prepares a run of a task, describes it, executes it and prints its metrics.

    Errors in arguments, data, installed packages or on the Hub end the program with a message.

    Args:
        task: training task with its arguments.
        training: arguments of `Trainer`.
        program: name in front of messages.
        format_metrics: formats metrics as text.
    """
    try:
        run = prepare(task, training)
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f"{program}: {error}")
    # A bar for each file of a checkpoint would interrupt that of Trainer.
    disable_progress_bar()
    is_main = training.process_index == 0
    if is_main:
        print(run.describe(), flush=True)
    try:
        metrics = run.execute()
    except KeyboardInterrupt:
        sys.exit(
            f"\n{program}: interrupted. Start it again with the same arguments to resume from the last "
            f"checkpoint in {training.output_dir}, if one was saved"
        )
    except FloatingPointError as error:
        sys.exit(f"\n{program}: {error}")
    except OSError as error:
        if not getattr(error, "__notes__", None):  # a failed push has notes
            raise
        sys.exit("\n".join([f"\n{program}: {error}", *error.__notes__]))
    if is_main:
        print(f"\n{format_metrics(metrics)}\n\nSaved to {training.output_dir}{_which_step(run.trainer)}")
        if training.push_to_hub:
            print(f"Pushed to {ENDPOINT}/{run.trainer.hub_model_id}")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Its threads abort a process that they outlive: delete the run, then the group it holds.
        del run
        gc.collect()
        torch.distributed.destroy_process_group()


def _which_step(trainer: HubTrainer) -> str:
    """Returns a note if the saved model is of an earlier step than the last."""
    state, args = trainer.state, trainer.args
    if not args.load_best_model_at_end or state.best_global_step in (None, state.global_step):
        return ""
    step = f"step {state.best_global_step} of {state.global_step}"
    return f": the model of {step}, the best by {args.metric_for_best_model}"
