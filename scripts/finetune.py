"""Fine-tune a Vision Transformer, with or without adaptive patch selection, on your own images.

    python scripts/finetune.py --dataset photos/ --model_name_or_path google/vit-base-patch16-224 \\
        --patch_selector variance --num_selected_patches 98 --output_dir runs/photos
    python scripts/finetune.py --dataset photos/ --model_name_or_path google/vit-base-patch16-224 \\
        --token_reducer merge --keep_rate 0.8 --reduction_layers 3 6 9 --output_dir runs/photos
    python scripts/finetune.py scripts/configs/imagefolder.yaml --learning_rate 1e-4
    accelerate launch scripts/finetune.py scripts/configs/imagefolder.yaml

The first argument may be a YAML or JSON file of flags; flags after it override it. A run that was interrupted goes on
where it was when it is started again with the same arguments.
"""

import sys

from huggingface_hub.constants import ENDPOINT
from transformers import Trainer
from transformers.utils.logging import disable_progress_bar

from vit_hf.training import (
    AugmentationArguments,
    DataArguments,
    MethodArguments,
    ModelArguments,
    RunArguments,
    format_metrics,
    make_parser,
    parse_arguments,
    prepare_run,
)


def which_step(trainer: Trainer) -> str:
    """Says so if what was saved is not how training ended."""
    state, args = trainer.state, trainer.args
    if not args.load_best_model_at_end or state.best_global_step in (None, state.global_step):
        return ""
    return f": the model of step {state.best_global_step} of {state.global_step}, the best by {args.metric_for_best_model}"


def main(argv: list[str] | None = None) -> None:
    groups = [ModelArguments, DataArguments, AugmentationArguments, MethodArguments, RunArguments]
    parser = make_parser(
        groups, __doc__, usage="%(prog)s [CONFIG.yaml] --dataset DATASET --output_dir DIR [flag ...]"
    )
    *arguments, training = parse_arguments(parser, argv)
    try:
        run = prepare_run(*arguments, training)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"finetune.py: {error}")
    # A bar for each file of a checkpoint would tear Trainer's own apart.
    disable_progress_bar()
    is_main = training.process_index == 0
    if is_main:
        print(run.describe(), flush=True)
    try:
        metrics = run.execute()
    except KeyboardInterrupt:
        sys.exit(
            "\nfinetune.py: interrupted. Start it again with the same arguments: it goes on from the last checkpoint in "
            f"{training.output_dir}, if one was saved"
        )
    except FloatingPointError as error:
        sys.exit(f"\nfinetune.py: {error}")
    except OSError as error:
        if not getattr(error, "__notes__", None):  # which a failed push has
            raise
        sys.exit("\n".join([f"\nfinetune.py: {error}", *error.__notes__]))
    if is_main:
        print(f"\n{format_metrics(metrics)}\n\nSaved to {training.output_dir}{which_step(run.trainer)}")
        if training.push_to_hub:
            print(f"Pushed to {ENDPOINT}/{run.trainer.hub_model_id}")


if __name__ == "__main__":
    main()
