"""`vit-hf explain`: pictures of what was kept."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import ExplainArguments
from . import PROGRAM
from .parsing import CommandParser, announce, fail, parse, read_arguments


if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor

    from ..explanations.explanation import Explanation

DESCRIPTION = f"""
Show which patches of images a model kept, why, and where its attention went.

  {PROGRAM} explain --model_name_or_path runs/photos --images cat.jpg dog.jpg
  {PROGRAM} explain --model_name_or_path runs/photos --images photos/
  {PROGRAM} explain --model_name_or_path google/vit-base-patch16-224 --images scan.png \\
      --patch_selector attention --num_selected_patches 0.25 --pictures overview scores

Open <output>/<image>_overview.png first; <output>/statistics.csv has a row of numbers for each image.
Images that cannot be read are left out and listed at the end; the exit status is then 1.
"""


def make_parser(name: str = "explain") -> CommandParser:
    usage = "[CONFIG.yaml] --model_name_or_path MODEL --images IMAGE ... [flag ...]"
    return CommandParser(name, [ExplainArguments], DESCRIPTION, usage)


def load(arguments: ExplainArguments) -> tuple["PreTrainedModel", "BaseImageProcessor"]:
    """Loads a model of ours, and its image processor."""
    import torch

    from .. import AdaptiveSwinForImageClassification, AdaptiveViTForImageClassification
    from ..checkpoints.loading import is_swin, load_classifier

    path = arguments.model_name_or_path
    model, processor = load_classifier(path, **arguments.changes())
    classes = (AdaptiveViTForImageClassification, AdaptiveSwinForImageClassification)
    if not isinstance(model, classes):  # a stock model, of which all patches are explained
        model = classes[is_swin(path)].from_pretrained(path)
    device = arguments.device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return model.to(device), processor


def find(inputs: list[str], labels: list[str] | None) -> tuple[list[str], list[str]]:
    """Finds the images: files and URLs as they are, those of folders and patterns by their paths.

    Returns:
        Images, and a title of each: "green_2" of photos/green/2.png if photos/ was named.

    Raises:
        ValueError: if labels are given for another number of images.
    """
    from ..data.image_folders import LeftOut
    from ..data.images import find_images
    from ..readers.suffixes import is_whole_image

    left_out, images, titles = LeftOut(), [], []
    for image in inputs:
        several = Path(image).is_dir() or (any(sign in image for sign in "*?[") and not Path(image).exists())
        if not several:
            images.append(image)
            titles.append(image)
            continue
        paths = [Path(path) for path in find_images([image], left_out, is_whole_image)]
        images += map(str, paths)
        if paths:
            folder = os.path.commonpath([path.parent for path in paths])
            titles += ["_".join(path.relative_to(folder).parts) for path in paths]
    for note in left_out.notes():
        print(note, file=sys.stderr)
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"there are {len(labels)} labels for {len(images)} images; give one for each")
    return images, titles


def read_boxes(path: str | None, images: list[str]) -> list[list[list[float]] | None]:
    """Reads the boxes of each image; None for those that the file does not name.

    Raises:
        ValueError: if the file is no such JSON, names none of the images, or means several by one name.
    """
    if path is None:
        return [None] * len(images)
    try:
        boxes = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(boxes, dict):
        raise ValueError(f"{path} must hold an object {{image: [[x0, y0, x1, y1], ...]}}, not {boxes!r:.80}")
    names = [Path(image).name for image in images]
    for name, number in Counter(names).items():
        if number > 1 and name in boxes and name not in images:
            raise ValueError(f"{path} means {number} images by {name!r}; name them there as in --images")
    found = [boxes.get(image, boxes.get(name)) for image, name in zip(images, names, strict=True)]
    if all(item is None for item in found):
        known = ", ".join(map(repr, list(boxes)[:3])) or "no image"
        raise ValueError(f"{path} names none of the images; it names {known}")
    return found


def explain_each(
    model: "PreTrainedModel",
    image_processor: "BaseImageProcessor",
    arguments: ExplainArguments,
    images: list[str],
    titles: list[str],
    boxes: list[list[list[float]] | None],
    failures: list[str],
) -> Iterator["Explanation"]:
    """Explains one image after the other; adds to `failures` why some were left out."""
    from tqdm.auto import tqdm

    from ..data.images import unique_names
    from ..explanations.explain import explain

    # A class may be called "7", so names come before numbers.
    names = model.config.id2label
    numbers = {str(index): index for index in names} | {name: name for name in names.values()}
    labels = [numbers.get(label, label) for label in arguments.labels or []] or [None] * len(images)
    pictures = arguments.pictures
    rows = list(zip(images, labels, unique_names(titles), boxes, strict=True))
    for image, label, name, found in tqdm(rows, unit="image", disable=None):
        try:
            (explanation,) = explain(
                model,
                image_processor,
                [image],
                arguments.output,
                pictures,
                labels=None if label is None else [label],
                names=[name],
                boxes=[found],
            )
        except (OSError, ValueError) as error:
            failures.append(f"{image}: {error}")
            continue
        tqdm.write(f"{image}: {explanation.prediction.summary}, {explanation.amount}")
        for path in explanation.files.values():
            tqdm.write(f"{image}: {path}")
        # About the model, which stays the same.
        pictures = [picture for picture in pictures if picture != "positions"]
        yield explanation


def run(name: str, argv: list[str]) -> None:
    """Draws the pictures, and says where they are."""
    parser = make_parser(name)
    arguments, _ = parse(parser, read_arguments(parser, argv))
    announce(f"{parser.prog}: loading {arguments.model_name_or_path} ...")
    from transformers.utils.logging import disable_progress_bar

    from ..explanations.explain import write_statistics

    disable_progress_bar()
    try:
        images, titles = find(arguments.images, arguments.labels)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        boxes = read_boxes(arguments.boxes, images)
        model, image_processor = load(arguments)
    except (OSError, RuntimeError, ValueError) as error:
        fail(parser, error)
    failures: list[str] = []
    explanations = explain_each(model, image_processor, arguments, images, titles, boxes, failures)
    first = next(explanations, None)
    if first is not None:
        path = write_statistics(chain([first], explanations), Path(arguments.output) / "statistics.csv")
        print(f"statistics: {path}")
    if failures:
        sys.exit("\n".join([f"{len(failures)} of {len(images)} images were left out:", *failures]))
