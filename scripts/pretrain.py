"""Pretrain a Vision Transformer on images without labels, by masked autoencoding (He et al., 2022).

    python scripts/pretrain.py --dataset photos/ --image_size 224 --position_encoding rotary --output_dir
    runs/pretrained python scripts/pretrain.py scripts/configs/pretrain_digits.yaml
    python scripts/finetune.py --dataset labelled/ --model_name_or_path runs/pretrained --patch_selector
    variance \\
        --num_selected_patches 98 --output_dir runs/photos

The encoder sees a random quarter of the patches, and a light decoder, which fine-tuning leaves out,
reconstructs the others. The first argument may be a YAML or JSON file of flags; flags after it override it. A
run that was interrupted goes on where it was when it is started again with the same arguments. Labels, where
there are any, are not read.
"""

from vit_hf.training.pretraining import Pretraining
from vit_hf.training.task import main_of


def main(argv: list[str] | None = None) -> None:
    main_of(Pretraining, "pretrain.py", __doc__, argv)


if __name__ == "__main__":
    main()
