"""Fine-tune a Vision Transformer, with or without adaptive patch selection, to tell the class of each pixel.

    python scripts/segment.py --dataset fields/ --model_name_or_path google/vit-base-patch16-224 --native_resolution \\
        --patch_selector saliency --num_selected_patches 0.25 --output_dir runs/fields
    python scripts/segment.py scripts/configs/segment_digits.yaml

`fields/` is an image folder whose metadata.csv has the columns file_name and mask_file_name; a parquet file or a data set
with a column of masks works as well. Masks have one channel: a class for each pixel, 255 for pixels to ignore
(another value with --ignore_label); black and white ones need --binary. The first argument may be a YAML or
JSON file of flags; flags after it override it. A run that was interrupted goes on where it was when it is
started again with the same arguments.
"""

from vit_hf.training import (
    DataArguments,
    ModelArguments,
    RunArguments,
    SegmentationArguments,
    make_parser,
    parse_arguments,
    prepare_segmentation,
    run_and_report,
)


def main(argv: list[str] | None = None) -> None:
    groups = [ModelArguments, DataArguments, SegmentationArguments, RunArguments]
    parser = make_parser(
        groups, __doc__, usage="%(prog)s [CONFIG.yaml] --dataset DATASET --output_dir DIR [flag ...]"
    )
    *arguments, training = parse_arguments(parser, argv)
    run_and_report("segment.py", lambda: prepare_segmentation(*arguments, training), training)


if __name__ == "__main__":
    main()
