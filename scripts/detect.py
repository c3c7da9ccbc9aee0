"""Fine-tune one of transformers' detectors over a Vision Transformer, with or without adaptive patch
selection.

    python scripts/detect.py --dataset trees/ --model_name_or_path google/vit-base-patch16-224 --crop_size 512
    \\
        --patch_selector saliency --num_selected_patches 0.5 --output_dir runs/trees
    python scripts/detect.py --dataset others/ --model_name_or_path runs/trees --evaluate_only true \\
        --crop_size 512 --output_dir runs/others
    python scripts/detect.py scripts/configs/detect_digits.yaml

`trees/` is a folder of images with a Pascal VOC file (.xml) beside each, optionally under train, validation
and test. An image folder, a parquet file or a data set with a column `objects` ({bbox, category}, boxes as
COCO has them) works as well. model_name_or_path is a ViT, which becomes the backbone of a new detector, or a
detector that this script saved. The first argument may be a YAML or JSON file of flags; flags after it
override it. A run that was interrupted goes on where it was when it is started again with the same arguments.
Needs `pip install vit_hf[train,detection]`.
"""

from vit_hf.training.detection import Detection
from vit_hf.training.task import main_of


def main(argv: list[str] | None = None) -> None:
    main_of(Detection, "detect.py", __doc__, argv)


if __name__ == "__main__":
    main()
