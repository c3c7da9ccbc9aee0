"""Choose learning rate and other settings of fine-tuning by Optuna: many short runs, judged on the validation
split.

    python scripts/tune.py --dataset photos/ --model_name_or_path google/vit-base-patch16-224 \\
        --patch_selector variance --num_selected_patches 98 --output_dir runs/tuning --max_steps 500 \\
        --eval_strategy steps --eval_steps 100 --layer_decays 0.6 1.0 --num_trials 30
    python scripts/finetune.py runs/tuning/best.yaml --max_steps 5000

The flags are those of scripts/finetune.py, and which settings to try. The study is kept in output_dir:
started again with the same arguments, or with a larger num_trials, it goes on. best.yaml has the best
arguments, study.png what was tried.
"""

import sys

from transformers.utils.logging import disable_progress_bar

from vit_hf.data.arguments import DataArguments
from vit_hf.data.augmentation import AugmentationArguments
from vit_hf.search.tuning import TrialArguments, TuningArguments, prepare_tuning
from vit_hf.training.arguments import FinetuningArguments, ModelArguments
from vit_hf.training.command_line import given_flags, make_parser, parse_arguments


def main(argv: list[str] | None = None) -> None:
    groups = [
        ModelArguments,
        DataArguments,
        AugmentationArguments,
        FinetuningArguments,
        TuningArguments,
        TrialArguments,
    ]
    parser = make_parser(
        groups, __doc__, usage="%(prog)s [CONFIG.yaml] --dataset DATASET --output_dir DIR [flag ...]"
    )
    arguments = parse_arguments(parser, argv)
    try:
        run = prepare_tuning(*arguments, given=given_flags(parser, argv))
        disable_progress_bar()
        print(run.describe(), flush=True)
        study = run.execute()
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f"tune.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\ntune.py: interrupted. Start it again with the same arguments: the study goes on")
    settings = ", ".join(f"{name} {value:.4g}" for name, value in study.best_trial.params.items())
    print(f"\nBest of {len(study.trials)} trials: {run.metric} {study.best_value:.4f} with {settings}")
    print(f"Train with it: python scripts/finetune.py {run.folder / 'best.yaml'}")


if __name__ == "__main__":
    main()
