"""`vit-hf tune`: settings of fine-tuning, chosen by Optuna."""

from ..arguments import TASKS
from . import PROGRAM
from .parsing import CommandParser, announce, fail, given_flags, parse, read_arguments


DESCRIPTION = f"""
Choose learning rate and other settings of fine-tuning by Optuna: many short runs, judged on the
validation split.

  {PROGRAM} tune --dataset photos/ --model_name_or_path google/vit-base-patch16-224 \\
      --patch_selector variance --num_selected_patches 98 --output_dir runs/tuning --max_steps 500 \\
      --eval_strategy steps --eval_steps 100 --layer_decays 0.6 1.0 --num_trials 30
  {PROGRAM} finetune runs/tuning/best.yaml --max_steps 5000

The flags are those of {PROGRAM} finetune, and which settings to try. The study is kept in output_dir:
started again with the same arguments, or with a larger num_trials, it goes on. best.yaml has the best
arguments, study.png the trials.
"""


def make_parser(name: str = "tune") -> CommandParser:
    usage = "[CONFIG.yaml] --dataset DATASET --output_dir DIR [flag ...]"
    return CommandParser(name, TASKS["tune"], DESCRIPTION, usage, ("search.tuning", "TrialArguments"))


def run(name: str, argv: list[str]) -> None:
    """Tries settings, and prints the best."""
    parser = make_parser(name)
    argv = read_arguments(parser, argv)
    given = given_flags(parser, argv)
    announce(f"{parser.prog}: loading torch and transformers ...")
    from transformers.utils.logging import disable_progress_bar

    from ..search.tuning import prepare_tuning

    parser.complete()
    *arguments, _ = parse(parser, argv)
    try:
        run = prepare_tuning(*arguments, given=given)
        disable_progress_bar()
        print(run.describe(), flush=True)
        study = run.execute()
    except (ImportError, OSError, TypeError, ValueError) as error:
        fail(parser, error)
    except KeyboardInterrupt:
        fail(parser, "interrupted. Start it again with the same arguments: the study goes on")
    settings = ", ".join(f"{name} {value:.4g}" for name, value in study.best_trial.params.items())
    print(f"\nBest of {len(study.trials)} trials: {run.metric} {study.best_value:.4f} with {settings}")
    print(f"Train with it: {PROGRAM} finetune {run.folder / 'best.yaml'}")
