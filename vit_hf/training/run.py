"""Running a training task from the command line."""

import sys

from huggingface_hub.constants import ENDPOINT
from transformers.utils.logging import disable_progress_bar

from .arguments import RunArguments
from .command_line import format_metrics, make_parser, parse_arguments
from .hub_trainer import HubTrainer
from .task import Task, prepare


def _which_step(trainer: HubTrainer) -> str:
    """Returns a note if the saved model is not that of the last step."""
    state, args = trainer.state, trainer.args
    if not args.load_best_model_at_end or state.best_global_step in (None, state.global_step):
        return ""
    step = f"step {state.best_global_step} of {state.global_step}"
    return f": the model of {step}, the best by {args.metric_for_best_model}"


def main_of(task: type[Task], script: str, text: str, argv: list[str] | None = None) -> None:
    """Prepares a run of a task from command-line flags, describes it, executes it and prints its metrics.

    Errors in arguments, data, installed packages or on the Hub end the program with a message.

    Args:
        task: class of the task.
        script: file name that messages begin with.
        text: description of the script for `--help`.
        argv: flags; by default those of the process.
    """
    groups = [*task.argument_groups, RunArguments]
    usage = "%(prog)s [CONFIG.yaml] --dataset DATASET --output_dir DIR [flag ...]"
    *arguments, training = parse_arguments(make_parser(groups, text, usage=usage), argv)
    try:
        run = prepare(task(*arguments), training)
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
            f"\n{script}: interrupted. Start it again with the same arguments: it goes on from the last "
            f"checkpoint in {training.output_dir}, if one was saved"
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
