"""`vit-hf predict`: labels of images, here or by Ray."""

import contextlib
import json
import sys
from typing import TYPE_CHECKING

from ..arguments import CollectionArguments, DenseArguments, PredictionArguments, TilingArguments
from . import PROGRAM
from .parsing import CommandParser, announce, fail, parse, read_arguments


DESCRIPTION = f"""
Classify images: one JSON line for each, in order; or, of large collections, one row of Parquet files.

  {PROGRAM} predict photos/ holiday.jpg 'scans/*.png' --model_name_or_path runs/photos > labels.jsonl
  {PROGRAM} predict photos/ --model_name_or_path google/vit-base-patch16-224 --output labels.jsonl
  {PROGRAM} predict photos/ --model_name_or_path runs/photos --token_reducer merge --keep_rate 0.7
  {PROGRAM} predict scans/ --model_name_or_path runs/photos --tile 224 --aggregate topk-mean --heat_maps maps
  {PROGRAM} predict s3://bucket/photos --model_name_or_path runs/photos --engine ray --output s3://bucket/labels

Takes files, folders (searched recursively) and patterns. A line has file, label, score and top_k; for
several labels an image, top_k ranks them all by probability; a regression has value instead. With
--tile the prediction is made of those of tiles at full resolution, whatever the size of the image, and
a line has num_tiles as well. Files that cannot be used have no line: they are listed at the end on
standard error, and the exit status is 1 (0 if all went well, 2 for wrong arguments).

A segmentation model or a detector of transformers works tile by tile as well. It writes masks (GeoTIFF, npy,
zarr, GeoJSON) or objects (COCO, GeoJSON) and a picture into the folder --output; a line on standard output
has the fractions of the classes, or the numbers of objects, and the names of the files. Started again with
the same arguments, it goes on where it was.

  {PROGRAM} predict scenes/ --model_name_or_path nvidia/segformer-b0-finetuned-ade-512-512 --output masks
  {PROGRAM} predict scenes/ --model_name_or_path facebook/detr-resnet-50 --output boxes --scales 1 0.5

With --engine ray (pip install vit_hf[ray]) the images may be in Parquet files and object stores as
well. The output is rows with the columns file, table and row (of a Parquet file that has the image),
label, score, top_k and error. Started again with the same arguments, it goes on with the images that
have no row yet.
"""
MAX_ERRORS_SHOWN = 10

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..inference.predict import FilePrediction


def make_parser(name: str = "predict") -> CommandParser:
    groups = [PredictionArguments, TilingArguments, DenseArguments, CollectionArguments]
    usage = "[CONFIG.yaml] INPUT ... --model_name_or_path MODEL [flag ...]"
    parser = CommandParser(name, groups, DESCRIPTION, usage)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image file, folder or pattern; for ray, Parquet or URI, too",
    )
    return parser


def run(name: str, argv: list[str]) -> int:
    """Predicts; returns the exit status."""
    parser = make_parser(name)
    arguments, tiling, dense, collection, namespace = parse(parser, read_arguments(parser, argv))
    if collection.engine == "ray" and tiling.tile is not None:
        parser.error("engine ray sees images whole: leave out tile, or the engine")
    announce(f"{parser.prog}: loading {arguments.model_name_or_path} ...")
    if collection.engine == "ray":
        return predict_by_ray(parser, arguments, collection, namespace.inputs)
    return predict_here(parser, arguments, tiling, dense, namespace.inputs)


def start(
    arguments: PredictionArguments, tiling: TilingArguments, dense: DenseArguments, inputs: list[str]
) -> tuple[list["Path"], "Iterator[FilePrediction]"]:
    """Finds the files and loads the model; returns the files, and an iterator of their predictions."""
    import torch

    from ..checkpoints.loading import load_classifier
    from ..data.image_folders import LeftOut
    from ..data.images import find_images
    from ..inference.dense_prediction import dense_class_of, load_dense_model, predict_files_dense
    from ..inference.predict import predict_files, predict_files_tiled
    from ..readers.suffixes import is_image, is_whole_image

    is_classifier = dense_class_of(arguments.model_name_or_path) is None
    if not is_classifier:
        check_dense(arguments, tiling)
    left_out = LeftOut()
    # Images that are read a region at a time have to be cut into tiles.
    is_wanted = is_whole_image if is_classifier and tiling.tile is None else is_image
    files = find_images(inputs, left_out, is_wanted)
    for note in left_out.notes():
        print(note, file=sys.stderr)
    load = load_classifier if is_classifier else load_dense_model
    model, image_processor = load(arguments.model_name_or_path, **arguments.changes())
    if torch.accelerator.is_available() and not arguments.use_cpu:
        model.to(torch.accelerator.current_accelerator())
    if not is_classifier:
        grid = {"tile": tiling.tile, "overlap": tiling.overlap, "batch_size": arguments.batch_size}
        return files, predict_files_dense(model, image_processor, files, arguments.output, dense, **grid)
    common = {field: getattr(arguments, field) for field in ("top_k", "with_patches", "batch_size")}
    if tiling.tile is not None:
        return files, predict_files_tiled(model, image_processor, files, tiling, **common)
    return files, predict_files(model, image_processor, files, **common, num_workers=arguments.num_workers)


def check_dense(arguments: PredictionArguments, tiling: TilingArguments) -> None:
    """Checks options of classifiers for a model that predicts masks or boxes.

    Raises:
        ValueError: if there is no folder for the files, or an option is only for classifiers.
    """
    if arguments.output is None:
        raise ValueError("a segmentation model or a detector writes several files: set output to a folder")
    if arguments.with_patches or tiling.heat_maps is not None:
        raise ValueError("with_patches and heat_maps are for classifiers: leave them out")


def predict_here(
    parser: CommandParser,
    arguments: PredictionArguments,
    tiling: TilingArguments,
    dense: DenseArguments,
    inputs: list[str],
) -> int:
    """Predicts in this process, to JSON lines."""
    from tqdm.auto import tqdm

    from ..inference.dense_prediction import dense_class_of

    errors = []
    with contextlib.ExitStack() as stack:
        try:
            files, predictions = start(arguments, tiling, dense, inputs)
            output = sys.stdout
            if arguments.output and dense_class_of(arguments.model_name_or_path) is None:
                output = stack.enter_context(open(arguments.output, "w", encoding="utf-8"))
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


def predict_by_ray(
    parser: CommandParser,
    arguments: PredictionArguments,
    collection: CollectionArguments,
    inputs: list[str],
) -> int:
    """Predicts in processes of this machine or of a cluster, to Parquet files."""
    from tqdm.auto import tqdm

    try:
        from ..inference.ray_prediction import prepare_collection

        run = prepare_collection(arguments, collection, inputs)
    except (ImportError, OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    print(run.describe(), flush=True)
    num_done = run.num_images - run.num_pending
    again = f"Start it again with the same arguments: what is in {run.folder} stays"
    try:
        with tqdm(total=run.num_images, initial=num_done, unit="image", disable=None) as bar:
            for count in run.execute():
                bar.update(count)
    except KeyboardInterrupt:
        fail(parser, f"interrupted. {again}")
    except RuntimeError as error:
        fail(parser, f"{error}\n{again}")
    num_rows, num_errors, errors = run.summary(MAX_ERRORS_SHOWN)
    print(f"Output:  {num_rows} images in {run.folder}")
    for error in errors:
        print(error, file=sys.stderr)
    if num_errors > len(errors):
        print(f"... and {num_errors - len(errors)} more: column error in {run.folder}", file=sys.stderr)
    if num_errors:
        print(f"{num_errors} of {num_rows} images could not be used", file=sys.stderr)
    return 1 if num_errors else 0
