"""Fine-tune a Vision Transformer, with or without adaptive patch selection, on your own images.

    python scripts/finetune.py --dataset photos/ --model_name_or_path google/vit-base-patch16-224 \\
        --patch_selector variance --num_selected_patches 98 --output_dir runs/photos
    python scripts/finetune.py --dataset photos/ --model_name_or_path google/vit-base-patch16-224 \\
        --token_reducer merge --keep_rate 0.8 --reduction_layers 3 6 9 --output_dir runs/photos
    python scripts/finetune.py scripts/configs/imagefolder.yaml --learning_rate 1e-4
    accelerate launch scripts/finetune.py scripts/configs/imagefolder.yaml

The first argument may be a YAML or JSON file of flags; flags after it override it. A run that was interrupted
goes on where it was when it is started again with the same arguments.
"""

from vit_hf.training.classification import Classification
from vit_hf.training.task import main_of


def main(argv: list[str] | None = None) -> None:
    main_of(Classification, "finetune.py", __doc__, argv)


if __name__ == "__main__":
    main()
