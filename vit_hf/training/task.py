"""The path from arguments, or a command line, to a finished run; all training tasks share it."""

import gc
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import send_to_device
from huggingface_hub.constants import ENDPOINT
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerState, set_seed
from transformers.image_processing_utils import BaseImageProcessor
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy
from transformers.utils.logging import disable_progress_bar

from ..data.augmentation import training_and_evaluation_examples
from ..model.budget import Budget
from ..model.configuration_adaptive_swin import AdaptiveSwinConfig
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.options import options_of, type_of
from .arguments import RunArguments
from .callbacks import (
    KeepRateSchedule,
    LogSelectionLoss,
    NonFiniteGuard,
    ReproducibleTraining,
    selecting_part,
)
from .curves import write_curves
from .hub_trainer import HubTrainer
from .model_loading import make_image_processor
from .next_commands import next_commands
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


# Arguments of `KeepRateSchedule`, and the options of a task that set them.
SCHEDULE_FLAGS = {
    "warmup_ratio": "keep_rate_warmup",
    "final_ratio": "keep_rate_final",
    "initial": "keep_rate_initial",
}


class Task(ABC):
    """Task to train a model for, with its arguments; `prepare` makes a run of it.

    A task defines its data, model, collator and summary; the other methods have defaults.

    Args:
        groups: all arguments but those of `Trainer`, one object for each of `argument_groups`.

    Attributes:
        splits: all splits of the data, set by `build`.
        evaluate_only: whether nothing is trained.
        averages_weights: whether checkpoints hold a moving average of the weights.
    """

    argument_groups: ClassVar[tuple[type, ...]]
    # Arguments of Trainer, with the defaults of the task.
    run_arguments: ClassVar[type[RunArguments]] = RunArguments
    trainer_class: ClassVar[Callable[..., HubTrainer]] = HubTrainer
    # From model, learning rate, weight decay, layer decay and factor of the backbone.
    parameter_groups: ClassVar[Callable[..., list[dict[str, Any]]]] = staticmethod(layerwise_parameter_groups)

    splits: dict[str, Any]

    def __init__(self, *groups: Any):
        self.groups = groups
        self.model_arguments, self.data_arguments, *augmentation, self.method = groups
        self.augmentation = augmentation[0] if augmentation else None
        self.evaluate_only = getattr(self.method, "evaluate_only", False)
        self.averages_weights = getattr(self.method, "ema_decay", None) is not None
        # Pretraining has none of these options.
        self.keep_rate_schedule = getattr(self.method, "keep_rate_schedule", False)
        self.layer_decay = getattr(self.method, "layer_decay", 1.0)
        self.backbone_lr_factor = getattr(self.method, "backbone_lr_factor", 1.0)

    @abstractmethod
    def load_data(self) -> dict[str, Any]:
        """Loads the data and returns all splits."""

    @abstractmethod
    def make_model(self) -> PreTrainedModel:
        """Builds or loads the model; the data are loaded."""

    @abstractmethod
    def collator(
        self, processor: BaseImageProcessor, training: RunArguments
    ) -> Callable[[list[dict]], dict[str, Any]]:
        """Returns the function that makes a batch of examples."""

    @abstractmethod
    def describe(self, model: PreTrainedModel, examples: dict[str, Dataset]) -> tuple[str, list[str], str]:
        """Returns the data, notes about examples that are left out, and the model, each in a line."""

    def check(self, training: RunArguments) -> None:  # noqa: B027
        """Raises ValueError for arguments that contradict each other or belong to other tasks."""

    def make_processor(self, model: PreTrainedModel) -> BaseImageProcessor:
        """Returns the image processor of the model; with a schedule of the keep rate the model selects."""
        return make_image_processor(self.model_arguments, model.config, select=not self.keep_rate_schedule)

    def examples(
        self, model: PreTrainedModel, processor: BaseImageProcessor, training: RunArguments
    ) -> dict[str, Dataset]:
        """Returns the examples of each split: augmented images for training, unchanged ones otherwise."""
        return training_and_evaluation_examples(self.splits, self.augmentation, processor, training.seed)

    def metrics(self, model: PreTrainedModel, processor: BaseImageProcessor) -> Callable | None:
        """Returns `compute_metrics`; None if only the loss is evaluated."""
        return None

    def best_metric(self) -> tuple[str, bool]:
        """Returns the name of the metric that compares checkpoints, and whether higher is better."""
        return "loss", False

    def callbacks(self, model: PreTrainedModel) -> list[TrainerCallback]:
        """Returns the callbacks of the task, in addition to those that every run has."""
        callbacks: list[TrainerCallback] = [LogSelectionLoss()]
        if self.keep_rate_schedule:
            config = selecting_part(model).config
            if config.patch_selector is None and config.token_reducer is None:
                raise ValueError("keep_rate_schedule needs a patch_selector or a token_reducer.")
            options = {name: getattr(self.method, flag, None) for name, flag in SCHEDULE_FLAGS.items()}
            callbacks.append(
                KeepRateSchedule(**{name: value for name, value in options.items() if value is not None})
            )
        return callbacks

    def adjust(self, model: PreTrainedModel, training: RunArguments) -> None:  # noqa: B027
        """Sets those arguments of `Trainer` that the task decides."""

    def finish(self, trainer: HubTrainer, examples: dict[str, Dataset]) -> None:  # noqa: B027
        """Adds to the results of a run that is complete."""


@dataclass
class Run:
    """A validated run, ready to start.

    Attributes:
        task: task with all data.
        trainer: trainer with model, training data and arguments.
        examples: examples of "validation" and "test", if present.
        checkpoint: checkpoint to resume; None for a new run.
        description: data and model, a line each.
        is_finished: whether the checkpoint is of the last step, so that nothing is left to train.
        notes: lines about files that `execute` wrote or left out.
    """

    task: Task
    trainer: HubTrainer
    examples: dict[str, Dataset]
    checkpoint: Path | None
    description: list[str]
    is_finished: bool = False
    notes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Returns a summary of data, model and start in a few lines."""
        start = "begins" if self.checkpoint is None else f"resumes from {self.checkpoint}"
        if self.is_finished:
            start = (
                f"is finished: {self.checkpoint} is its last step, so it is only evaluated again. To train "
                "on, raise num_train_epochs or max_steps; to begin anew, set overwrite_output_dir or name "
                "another output_dir"
            )
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
        if not self.task.evaluate_only and trainer.is_world_process_zero():
            state, args = trainer.state, trainer.args
            best = state.best_global_step if args.load_best_model_at_end else None
            path = Path(args.output_dir)
            self.notes.append(write_curves(path, state.log_history, args.metric_for_best_model, best))
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
        # Pushed later, with its metrics.
        trainer.save_model(_internal_call=True)
        trainer.save_state()
        # A run that was complete already has no training loss.
        if trainer.state.global_step <= steps_done:
            return {}
        trainer.save_metrics("train", result.metrics)
        return dict(result.metrics)


def prepare(task: Task, training: RunArguments) -> Run:
    """Prepares a new run, or one that resumes in `training.output_dir`, up to its first step.

    Arguments and data are checked here, before anything is written.

    Raises:
        ImportError: if a package that the task needs is not installed.
        OSError, TypeError, ValueError: for wrong arguments, data or folder.
    """
    check_output_dir(training.output_dir)
    # As given: some are about to be changed.
    arguments = training.to_dict()
    for group in task.groups:
        arguments |= asdict(group)
    model, processor, examples = build(task, training)
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
    number = check_batch(trainer)

    open_output_dir(training, arguments, checkpoint)
    data, notes, parts = task.describe(model, examples)
    description = [f"Data:   {data}", *(f"        {note}" for note in notes), f"Model:  {parts}"]
    description += [f"        {number}"] if number else []
    is_finished = checkpoint is not None and is_last_step(trainer, checkpoint)
    held_out = {name: images for name, images in examples.items() if name != "train"}
    return Run(task, trainer, held_out, checkpoint, description, is_finished)


def build(
    task: Task, training: RunArguments, needs_validation: bool = False
) -> tuple[PreTrainedModel, BaseImageProcessor, dict[str, Dataset]]:
    """Checks the arguments of a task, loads its data and builds its model; writes nothing.

    Args:
        task: receives its `splits`.
        training: arguments of `Trainer`.
        needs_validation: whether a validation split is required even if `Trainer` does not evaluate.

    Returns:
        Model, image processor, and examples by split.

    Raises:
        ImportError, OSError, TypeError, ValueError: as `prepare`.
    """
    task.check(training)
    # One process after the other, because the first fills a cache that the others read.
    with training.main_process_first():
        task.splits = task.load_data()
    if not task.evaluate_only:
        check_splits(task.splits, training, needs_validation)
    set_seed(training.seed)
    model = task.make_model()
    processor = task.make_processor(model)
    return model, processor, task.examples(model, processor, training)


def make_trainer(
    task: Task,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    examples: dict[str, Dataset],
    training: RunArguments,
) -> HubTrainer:
    """Makes the `Trainer` of a task; changes the arguments in `training` that task or package decide."""
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
        # With `evaluate_only` there is nothing to train on; `check_batch` then uses held-out images.
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


def check_splits(splits: dict[str, Any], training: RunArguments, needs_validation: bool = False) -> None:
    """Raises ValueError if a split for training, or one that is required for evaluation, is missing."""
    if "train" not in splits:
        raise ValueError(f"the data have no train split, only {', '.join(splits)}")
    is_evaluated = training.eval_strategy != IntervalStrategy.NO
    if "validation" not in splits and (needs_validation or is_evaluated):
        remedies = "add one, or set validation_fraction above 0"
        if not needs_validation:
            remedies = "add one, set validation_fraction above 0, or set eval_strategy to 'no'"
        raise ValueError(f"there is no validation split: {remedies}")


def is_last_step(trainer: HubTrainer, checkpoint: Path) -> bool:
    """Returns whether a checkpoint has all the steps that the trainer's arguments ask for."""
    done = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
    *_, max_steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    return done >= max_steps


@torch.no_grad()
def check_batch(trainer: HubTrainer) -> str:
    """Runs the model on one or two images, so that mismatches fail before training starts.

    Returns:
        A phrase for the number of patches of the first image that the model computes on; empty if the model
        does not tell.

    Raises:
        ValueError: from the image processor or the model, for instance if images have fewer patches than
            are selected.
    """
    number = min(2, len(trainer.train_dataset), trainer.args.per_device_train_batch_size)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(number)])
    model = trainer.model.eval()
    outputs = model(**send_to_device(batch, model.device))
    selected, grids = (getattr(outputs, name, None) for name in ("selected_patches", "spatial_shapes"))
    if selected is None or grids is None:
        return ""
    return f"{(selected[0] >= 0).sum()} of {grids[0].prod()} patches of the first image"


def open_output_dir(training: RunArguments, arguments: dict[str, Any], checkpoint: Path | None) -> None:
    """Creates the folder of a run and writes its arguments there; earlier files are renamed."""
    with training.main_process_first():
        if training.process_index == 0:
            if training.overwrite_output_dir:
                set_aside(training.output_dir)
            if checkpoint is not None:
                set_incomplete_aside(training.output_dir, checkpoint)
            Path(training.output_dir).mkdir(parents=True, exist_ok=True)
            Path(training.output_dir, RUN_ARGUMENTS_NAME).write_text(json.dumps(arguments, indent=2))


def refuse_classification_options(task: Task, training: RunArguments) -> None:
    """Raises ValueError for options that only classification has."""
    if task.data_arguments.skip_corrupt:
        raise ValueError("skip_corrupt is for classification: mend or remove damaged images and labels")
    if training.label_smoothing_factor:
        raise ValueError("label_smoothing_factor is for classification: set it to 0")


def describe_sizes(splits: dict[str, Any]) -> str:
    """Returns the number of images of each split."""
    return ", ".join(f"{len(images)} {split}" for split, images in splits.items()) + " images"


def describe_selection(config: AdaptiveViTConfig | AdaptiveSwinConfig) -> str:
    """Describes the patches and tokens that a model processes."""
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
            amount = f"removes {merged} tokens"
        layers = ", ".join(map(str, sorted(config.reduction_layers)))
        text += f"; {type_of(config.token_reducer)} {amount} in each of the blocks {layers}"
    return text


def run_task(
    task: Task, training: RunArguments, program: str, format_metrics: Callable[[dict[str, float]], str]
) -> None:
    """Prepares a run of a task, describes it, executes it and prints its metrics.

    Errors in arguments, data, installed packages or on the Hub end the program with a message.

    Args:
        task: with its arguments.
        training: arguments of `Trainer`.
        program: name that messages begin with.
        format_metrics: makes text of metrics.
    """
    try:
        run = prepare(task, training)
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f"{program}: {error}")
    # Bars for each file of a checkpoint would interrupt Trainer's own.
    disable_progress_bar()
    is_main = training.process_index == 0
    if is_main:
        print(run.describe(), flush=True)
    try:
        metrics = run.execute()
    except KeyboardInterrupt:
        sys.exit(
            f"\n{program}: interrupted. Start it again with the same arguments: it resumes from the last "
            f"checkpoint in {training.output_dir}, if one was saved"
        )
    except FloatingPointError as error:
        sys.exit(f"\n{program}: {error}")
    except OSError as error:
        if not getattr(error, "__notes__", None):  # a failed push has some
            raise
        sys.exit("\n".join([f"\n{program}: {error}", *error.__notes__]))
    if is_main:
        print(f"\n{format_metrics(metrics)}\n\nSaved to {training.output_dir}{_which_step(run.trainer)}")
        print(*run.notes, *next_commands(task.groups, program, training.output_dir, run.examples), sep="\n")
        if training.push_to_hub:
            print(f"Pushed to {ENDPOINT}/{run.trainer.hub_model_id}")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Its threads abort a process that they outlive: first goes what holds the group, then the group.
        del run
        gc.collect()
        torch.distributed.destroy_process_group()


def _which_step(trainer: HubTrainer) -> str:
    """Returns a note if the saved model is not that of the last step."""
    state, args = trainer.state, trainer.args
    if not args.load_best_model_at_end or state.best_global_step in (None, state.global_step):
        return ""
    step = f"step {state.best_global_step} of {state.global_step}"
    return f": the model of {step}, the best by {args.metric_for_best_model}"
