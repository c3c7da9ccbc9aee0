"""Classify images: one JSON line for each, in order.

    python scripts/predict.py photos/ holiday.jpg 'scans/*.png' --model_name_or_path runs/photos > labels.jsonl
    python scripts/predict.py photos/ --model_name_or_path google/vit-base-patch16-224 --output labels.jsonl
    python scripts/predict.py photos/ --model_name_or_path runs/photos --token_reducer merge --keep_rate 0.7
    python scripts/predict.py scans/ --model_name_or_path runs/photos --tile 224 --aggregate topk-mean --heat_maps maps

Takes files, folders (searched recursively) and patterns. A line has file, label, score and top_k; for several labels an
image, top_k ranks them all by probability; a regression has value instead. With --tile the answer is made
of those of tiles at full resolution, whatever the size of the image, and a line has num_tiles as well. Files that cannot
be used have no line: they are listed at the end on standard error, and the exit code is 1 (0 if all went well, 2 for
wrong arguments).

The first argument may be a YAML or JSON file of flags (files as `inputs`); flags after it override it.
"""

import contextlib
import json
import sys

import torch
from tqdm.auto import tqdm

from vit_hf.training import (
    PredictionArguments,
    TilingArguments,
    find_images,
    load_classifier,
    make_parser,
    parse_arguments,
    predict_files,
    predict_files_tiled,
)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(
        [PredictionArguments, TilingArguments],
        __doc__,
        usage="%(prog)s [CONFIG.yaml] INPUT ... --model_name_or_path MODEL [flag ...]",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image file, folder or pattern")
    arguments, tiling, namespace = parse_arguments(parser, argv)
    errors = []
    with contextlib.ExitStack() as stack:
        try:
            files = find_images(namespace.inputs)
            model, image_processor = load_classifier(arguments.model_name_or_path, **arguments.changes())
            if torch.accelerator.is_available() and not arguments.use_cpu:
                model.to(torch.accelerator.current_accelerator())
            common = {name: getattr(arguments, name) for name in ("top_k", "with_patches", "batch_size")}
            if tiling.tile is None:
                num_workers = arguments.num_workers
                predictions = predict_files(model, image_processor, files, **common, num_workers=num_workers)
            else:
                predictions = predict_files_tiled(model, image_processor, files, tiling, **common)
            output = stack.enter_context(open(arguments.output, "w")) if arguments.output else sys.stdout
        except (OSError, TypeError, ValueError) as error:
            parser.error(str(error))
        # No bar where nobody watches it.
        for prediction in tqdm(predictions, total=len(files), unit="image", disable=None):
            if prediction.error is not None:
                errors.append(prediction.error)
                continue
            # Around the bar, if both are on a terminal.
            tqdm.write(json.dumps(prediction.answer, ensure_ascii=False), file=output)
    for error in errors:
        print(error, file=sys.stderr)
    if errors:
        print(f"{len(errors)} of {len(files)} files could not be used", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
