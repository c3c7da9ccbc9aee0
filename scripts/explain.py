"""Show which patches of images a model kept, why, and where its attention went.

    python scripts/explain.py --model_name_or_path runs/photos --images cat.jpg dog.jpg
    python scripts/explain.py --model_name_or_path google/vit-base-patch16-224 --images scan.png \\
        --patch_selector attention --num_selected_patches 0.25 --pictures overview scores

Open <output>/<image>_overview.png first; <output>/statistics.csv has a row of numbers for each image. The
first argument may be a YAML or JSON file of flags. Images that cannot be read are left out and listed at the
end; the exit status is then 1.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils.logging import disable_progress_bar

from vit_hf import AdaptiveSwinForImageClassification, AdaptiveViTForImageClassification
from vit_hf.checkpoints.loading import SelectionArguments, is_swin, load_classifier
from vit_hf.data.images import unique_names
from vit_hf.explanations.explain import PICTURES, Explanation, explain, write_statistics
from vit_hf.training.command_line import make_parser, parse_arguments


@dataclass(kw_only=True)
class ExplainArguments(SelectionArguments):
    model_name_or_path: str = field(
        metadata={"help": "checkpoint with its image processor, local or on the Hub"}
    )
    images: list[str] = field(metadata={"help": "image files or URLs"})
    output: str = field(
        default="explanations", metadata={"help": "folder for the pictures and statistics.csv"}
    )
    pictures: list[str] = field(
        default_factory=lambda: ["overview", "windows", "positions"],
        metadata={
            "help": "what to draw; windows are Swin's; positions is about the model, and one file",
            "choices": PICTURES,
        },
    )
    labels: list[str] | None = field(
        default=None, metadata={"help": "true class of each image, by name or number"}
    )
    boxes: str | None = field(
        default=None,
        metadata={
            "help": "JSON file of the objects in the images, in pixels: {image: [[x0, y0, x1, y1], "
            "...]}, the image named "
            "as in --images or by its file name alone"
        },
    )
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda; default: an accelerator if there is one"}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.labels is not None and len(self.labels) != len(self.images):
            raise ValueError(
                f"there are {len(self.labels)} labels for {len(self.images)} images; give one for each"
            )


def load(arguments: ExplainArguments) -> tuple[PreTrainedModel, BaseImageProcessor]:
    path = arguments.model_name_or_path
    model, processor = load_classifier(path, **arguments.changes())
    classes = (AdaptiveViTForImageClassification, AdaptiveSwinForImageClassification)
    if not isinstance(model, classes):  # a stock model, of which all patches are explained
        model = classes[is_swin(path)].from_pretrained(path)
    device = arguments.device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return model.to(device), processor


def read_boxes(path: str | None, images: list[str]) -> list[list[list[float]] | None]:
    """The boxes of each image; None for those that the file does not name.

    Raises:
        ValueError: if the file is no such JSON, names none of the images, or means several by one name.
    """
    if path is None:
        return [None] * len(images)
    try:
        boxes = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
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
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    arguments: ExplainArguments,
    boxes: list[list[list[float]] | None],
    failures: list[str],
) -> Iterator[Explanation]:
    """One image after the other; why some were left out is added to `failures`."""
    # A class may be called "7", so names come before numbers.
    names = model.config.id2label
    numbers = {str(index): index for index in names} | {name: name for name in names.values()}
    labels = [numbers.get(label, label) for label in arguments.labels or []] or [None] * len(arguments.images)
    pictures = arguments.pictures
    for image, label, name, found in zip(
        arguments.images, labels, unique_names(arguments.images), boxes, strict=True
    ):
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
        print(*(f"{image}: {path}" for path in explanation.files.values()), sep="\n", flush=True)
        # About the model, which stays the same.
        pictures = [picture for picture in pictures if picture != "positions"]
        yield explanation


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(make_parser([ExplainArguments], __doc__), argv)
    disable_progress_bar()
    try:
        boxes = read_boxes(arguments.boxes, arguments.images)
        model, image_processor = load(arguments)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"explain.py: {error}")
    failures: list[str] = []
    explanations = explain_each(model, image_processor, arguments, boxes, failures)
    first = next(explanations, None)
    if first is not None:
        path = write_statistics(chain([first], explanations), Path(arguments.output) / "statistics.csv")
        print(f"statistics: {path}")
    if failures:
        sys.exit("\n".join([f"{len(failures)} of {len(arguments.images)} images were left out:", *failures]))


if __name__ == "__main__":
    main()
