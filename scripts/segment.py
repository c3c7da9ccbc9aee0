"""Fine-tune a Vision Transformer, with or without adaptive patch selection, to tell the class of each pixel.

    python scripts/segment.py --dataset fields/ --model_name_or_path google/vit-base-patch16-224
    --native_resolution \\
        --patch_selector saliency --num_selected_patches 0.25 --output_dir runs/fields
    python scripts/segment.py scripts/configs/segment_digits.yaml

`fields/` is an image folder whose metadata.csv has the columns file_name and mask_file_name; a parquet file
or a data set with a column of masks works as well. Masks have one channel: a class for each pixel, 255 for
pixels to ignore (another value with --ignore_label); black and white ones need --binary. The first argument
may be a YAML or JSON file of flags; flags after it override it. A run that was interrupted goes on where it
was when it is started again with the same arguments.
"""

from vit_hf.training.segmentation import Segmentation
from vit_hf.training.task import main_of


def main(argv: list[str] | None = None) -> None:
    main_of(Segmentation, "segment.py", __doc__, argv)


if __name__ == "__main__":
    main()
