"""Classify images: one JSON line for each, in order; or, of large collections, one row of Parquet files.

    python scripts/predict.py photos/ holiday.jpg 'scans/*.png' --model_name_or_path runs/photos >
    labels.jsonl python scripts/predict.py photos/ --model_name_or_path google/vit-base-patch16-224 --output
    labels.jsonl python scripts/predict.py photos/ --model_name_or_path runs/photos --token_reducer merge
    --keep_rate 0.7 python scripts/predict.py scans/ --model_name_or_path runs/photos --tile 224 --aggregate
    topk-mean --heat_maps maps python scripts/predict.py s3://bucket/photos --model_name_or_path runs/photos
    --engine ray --output s3://bucket/answers

Takes files, folders (searched recursively) and patterns. A line has file, label, score and top_k; for several
labels an image, top_k ranks them all by probability; a regression has value instead. With --tile the answer
is made of those of tiles at full resolution, whatever the size of the image, and a line has num_tiles as
well. Files that cannot be used have no line: they are listed at the end on standard error, and the exit code
is 1 (0 if all went well, 2 for wrong arguments).

With --engine ray (pip install vit_hf[ray]) the images may be in Parquet files and object stores as well.
Answers are rows with the columns file, table and row (of a Parquet file that has the image), label, score,
top_k and error. Started again with the same arguments, it goes on with the images that have no row yet.

The first argument may be a YAML or JSON file of flags (files as `inputs`); flags after it override it.
"""

import contextlib
import json
import sys
from argparse import ArgumentParser

import torch
from tqdm.auto import tqdm

from vit_hf.checkpoints.loading import load_classifier
from vit_hf.data.collections import CollectionArguments
from vit_hf.data.image_folders import LeftOut
from vit_hf.data.images import find_images
from vit_hf.inference.predict import PredictionArguments, TilingArguments, predict_files, predict_files_tiled
from vit_hf.readers.suffixes import is_image, is_whole_image
from vit_hf.training.command_line import make_parser, parse_arguments


MAX_ERRORS_SHOWN = 10


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(
        [PredictionArguments, TilingArguments, CollectionArguments],
        __doc__,
        usage="%(prog)s [CONFIG.yaml] INPUT ... --model_name_or_path MODEL [flag ...]",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image file, folder or pattern; for ray, Parquet or URI, too",
    )
    arguments, tiling, collection, namespace = parse_arguments(parser, argv)
    if collection.engine == "local":
        return predict_here(parser, arguments, tiling, namespace.inputs)
    if tiling.tile is not None:
        parser.error("engine ray sees images whole: leave out tile, or the engine")
    return predict_on_ray(parser, arguments, collection, namespace.inputs)


def predict_here(
    parser: ArgumentParser, arguments: PredictionArguments, tiling: TilingArguments, inputs: list[str]
) -> int:
    errors = []
    with contextlib.ExitStack() as stack:
        try:
            left_out = LeftOut()
            # Images that are read a region at a time have to be cut into tiles.
            files = find_images(inputs, left_out, is_whole_image if tiling.tile is None else is_image)
            for note in left_out.notes():
                print(note, file=sys.stderr)
            model, image_processor = load_classifier(arguments.model_name_or_path, **arguments.changes())
            if torch.accelerator.is_available() and not arguments.use_cpu:
                model.to(torch.accelerator.current_accelerator())
            common = {name: getattr(arguments, name) for name in ("top_k", "with_patches", "batch_size")}
            if tiling.tile is None:
                num_workers = arguments.num_workers
                predictions = predict_files(model, image_processor, files, **common, num_workers=num_workers)
            else:
                predictions = predict_files_tiled(model, image_processor, files, tiling, **common)
            output = (
                stack.enter_context(open(arguments.output, "w", encoding="utf-8"))
                if arguments.output
                else sys.stdout
            )
        except (OSError, TypeError, ValueError) as error:
            parser.error(str(error))
        # No bar where nobody watches it.
        for prediction in tqdm(predictions, total=len(files), unit="image", disable=None):
            if prediction.error is not None:
                errors.append(prediction.error)
                continue
            # Names of files need not be UTF-8; JSON has a way to write those.
            line = json.dumps(prediction.result, ensure_ascii=False).encode("utf-8", "backslashreplace")
            # Around the bar, if both are on a terminal.
            tqdm.write(line.decode(), file=output)
    for error in errors:
        print(error, file=sys.stderr)
    if errors:
        print(f"{len(errors)} of {len(files)} files could not be used", file=sys.stderr)
    return 1 if errors else 0


def predict_on_ray(
    parser: ArgumentParser,
    arguments: PredictionArguments,
    collection: CollectionArguments,
    inputs: list[str],
) -> int:
    try:
        from vit_hf.inference.ray_prediction import prepare_collection

        run = prepare_collection(arguments, collection, inputs)
    except (ImportError, OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    print(run.describe(), flush=True)
    num_done = run.num_images - run.num_pending
    try:
        with tqdm(total=run.num_images, initial=num_done, unit="image", disable=None) as bar:
            for count in run.execute():
                bar.update(count)
    except KeyboardInterrupt:
        sys.exit(
            "\npredict.py: interrupted. Start it again with the same arguments: what is in "
            f"{run.folder} stays"
        )
    except RuntimeError as error:
        sys.exit(
            f"predict.py: {error}\nStart it again with the same arguments: what is in {run.folder} stays"
        )
    num_rows, num_errors, errors = run.summary(MAX_ERRORS_SHOWN)
    print(f"Output:  {num_rows} images in {run.folder}")
    for error in errors:
        print(error, file=sys.stderr)
    if num_errors > len(errors):
        print(f"... and {num_errors - len(errors)} more: column error in {run.folder}", file=sys.stderr)
    if num_errors:
        print(f"{num_errors} of {num_rows} images could not be used", file=sys.stderr)
    return 1 if num_errors else 0


if __name__ == "__main__":
    sys.exit(main())
