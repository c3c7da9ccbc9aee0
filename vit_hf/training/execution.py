"""A prepared training run, whatever it trains: open its folder, execute it, tell how it went."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import send_to_device
from huggingface_hub.constants import ENDPOINT
from torch.utils.data import Dataset
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.logging import disable_progress_bar

from .command_line import format_metrics
from .hub_trainer import HubTrainer
from .runs import RUN_ARGUMENTS_NAME, set_aside, set_incomplete_aside


class Run(Protocol):
    """What `run_and_report` needs of a run."""

    trainer: HubTrainer

    def execute(self) -> dict[str, float]:
        """Train, evaluate, save; returns metrics."""

    def describe(self) -> str:
        """What is going to happen, in a few lines."""


@dataclass
class PreparedRun:
    """A run about which nothing is left to be found wrong.

    Attributes:
        trainer: holds the model, the data and the arguments.
        splits: "validation" and "test", as far as there are any, as the trainer evaluates them.
        checkpoint: where the run goes on from; None at the beginning.
        description: of data and model, a line each.
    """

    trainer: HubTrainer
    splits: dict[str, Dataset]
    checkpoint: Path | None
    description: list[str]

    def execute(self) -> dict[str, float]:
        """See `execute_run`."""
        return execute_run(self.trainer, self.splits, self.checkpoint)

    def describe(self) -> str:
        """What is going to happen, in a few lines."""
        return "\n".join([*self.description, describe_beginning(self.checkpoint)])


def execute_run(trainer: HubTrainer, splits: dict[str, Dataset], checkpoint: Path | None) -> dict[str, float]:
    """Train (or go on), evaluate, and save model, image processor and metrics to `output_dir`.

    Returns:
        Metrics of training (`train_`), validation (`eval_`) and test (`test_`), as far as there are any.
    """
    # Now, because training may delete the checkpoint as one of the older ones.
    steps_done = _steps_done(checkpoint)
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # Not pushed before it was measured.
    trainer.save_model(_internal_call=True)
    trainer.save_state()
    metrics = {}
    # A run that was complete already has no training loss to tell.
    if trainer.state.global_step > steps_done:
        trainer.save_metrics("train", result.metrics)
        metrics |= result.metrics
    metrics |= evaluate_splits(trainer, splits)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    return metrics


def evaluate_splits(trainer: HubTrainer, splits: dict[str, Dataset]) -> dict[str, float]:
    """Metrics of validation (`eval_`) and test (`test_`), as far as there are any, which are saved to `output_dir`."""
    metrics = {}
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split in splits:
            scores = trainer.evaluate(splits[split], metric_key_prefix=prefix)
            trainer.save_metrics(prefix, scores)
            metrics |= scores
    return metrics


def describe_beginning(checkpoint: Path | None) -> str:
    return "Run:    begins" if checkpoint is None else f"Run:    resumes from {checkpoint}"


def _steps_done(checkpoint: Path | None) -> int:
    if checkpoint is None:
        return 0
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step


def open_output_dir(
    training: TrainingArguments, arguments: dict[str, Any], checkpoint: Path | None, start_anew: bool
) -> None:
    """Makes the folder of a run and notes there what it was started with; what is in the way is renamed."""
    with training.main_process_first():
        if training.process_index == 0:
            if start_anew:
                set_aside(training.output_dir)
            if checkpoint is not None:
                set_incomplete_aside(training.output_dir, checkpoint)
            Path(training.output_dir).mkdir(parents=True, exist_ok=True)
            Path(training.output_dir, RUN_ARGUMENTS_NAME).write_text(json.dumps(arguments, indent=2))


@torch.no_grad()
def check_batch(trainer: HubTrainer) -> None:
    """Run the model on an image or two, as many as a batch has, so that what does not fit fails before training begins.

    Raises:
        ValueError: as the image processor and the model do, for instance for images of fewer patches than are to
            be selected.
    """
    number = min(2, len(trainer.train_dataset), trainer.args.per_device_train_batch_size)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(number)])
    model = trainer.model.eval()
    model(**send_to_device(batch, model.device))


def _which_step(trainer: HubTrainer) -> str:
    """Says so if what was saved is not how training ended."""
    state, args = trainer.state, trainer.args
    if not args.load_best_model_at_end or state.best_global_step in (None, state.global_step):
        return ""
    return f": the model of step {state.best_global_step} of {state.global_step}, the best by {args.metric_for_best_model}"


def run_and_report(script: str, prepare: Callable[[], Run], training: TrainingArguments) -> None:
    """What the training scripts do: prepare a run, say what it is, execute it and print its metrics.

    What is wrong with arguments, data, what is installed or the Hub ends the program with a message.
    """
    try:
        run = prepare()
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f"{script}: {error}")
    # A bar for each file of a checkpoint would tear Trainer's own apart.
    disable_progress_bar()
    is_main = training.process_index == 0
    if is_main:
        print(run.describe(), flush=True)
    try:
        metrics = run.execute()
    except KeyboardInterrupt:
        sys.exit(
            f"\n{script}: interrupted. Start it again with the same arguments: it goes on from the last checkpoint in "
            f"{training.output_dir}, if one was saved"
        )
    except FloatingPointError as error:
        sys.exit(f"\n{script}: {error}")
    except OSError as error:
        if not getattr(error, "__notes__", None):  # which a failed push has
            raise
        sys.exit("\n".join([f"\n{script}: {error}", *error.__notes__]))
    if is_main:
        print(f"\n{format_metrics(metrics)}\n\nSaved to {training.output_dir}{_which_step(run.trainer)}")
        if training.push_to_hub:
            print(f"Pushed to {ENDPOINT}/{run.trainer.hub_model_id}")
