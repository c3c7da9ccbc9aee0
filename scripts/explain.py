"""Show which patches of images a model kept, why, and where its attention went.

    python scripts/explain.py --model_name_or_path runs/photos --images cat.jpg dog.jpg
    python scripts/explain.py --model_name_or_path google/vit-base-patch16-224 --images scan.png \\
        --patch_selector attention --num_selected_patches 0.25 --pictures overview scores

Open <output>/<image>_overview.png first. The first argument may be a YAML or JSON file of flags. Images that cannot be
read are left out and listed at the end; the exit status is then 1.
"""

import sys
from dataclasses import dataclass, field

import torch
from transformers import AutoImageProcessor
from transformers.utils.logging import disable_progress_bar

from vit_hf import AdaptiveViTForImageClassification
from vit_hf.explain import PICTURES, explain, unique_names
from vit_hf.training import make_parser, parse_arguments
from vit_hf.training.arguments import parse_number_or_share


@dataclass
class ExplainArguments:
    model_name_or_path: str = field(
        metadata={"help": "checkpoint with its image processor, local or on the Hub"}
    )
    images: list[str] = field(metadata={"help": "image files or URLs"})
    output: str = field(default="explanations", metadata={"help": "folder for the pictures"})
    pictures: list[str] = field(
        default_factory=lambda: ["overview", "positions"],
        metadata={"help": "what to draw; positions is about the model, and one file", "choices": PICTURES},
    )
    labels: list[str] | None = field(
        default=None, metadata={"help": "true class of each image, by name or number"}
    )
    patch_selector: str | None = field(
        default=None, metadata={"help": "instead of the model's own, such as variance or attention"}
    )
    num_selected_patches: str | None = field(
        default=None, metadata={"help": "patches to keep: a number such as 98, or a share such as 0.25"}
    )
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda; default: an accelerator if there is one"}
    )

    def __post_init__(self):
        self.num_selected_patches = parse_number_or_share(self.num_selected_patches)
        if self.labels is not None and len(self.labels) != len(self.images):
            raise ValueError(
                f"there are {len(self.labels)} labels for {len(self.images)} images; give one for each"
            )


def load(arguments: ExplainArguments) -> tuple[AdaptiveViTForImageClassification, AutoImageProcessor]:
    fields = {name: getattr(arguments, name) for name in ("patch_selector", "num_selected_patches")}
    fields = {name: value for name, value in fields.items() if value is not None}
    model = AdaptiveViTForImageClassification.from_pretrained(arguments.model_name_or_path, **fields)
    device = arguments.device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return model.to(device), AutoImageProcessor.from_pretrained(arguments.model_name_or_path)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(make_parser([ExplainArguments], __doc__), argv)
    disable_progress_bar()
    try:
        model, image_processor = load(arguments)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"explain.py: {error}")

    # A class may be called "7", so names come before numbers.
    names = model.config.id2label
    numbers = {str(index): index for index in names} | {name: name for name in names.values()}
    labels = [numbers.get(label, label) for label in arguments.labels or []] or [None] * len(arguments.images)
    pictures, failures = arguments.pictures, []
    for image, label, name in zip(arguments.images, labels, unique_names(arguments.images), strict=True):
        labels_of_image = None if label is None else [label]
        try:
            (explanation,) = explain(
                model, image_processor, [image], arguments.output, pictures, labels_of_image, [name]
            )
        except (OSError, ValueError) as error:
            failures.append(f"{image}: {error}")
            continue
        print(*(f"{image}: {path}" for path in explanation.files.values()), sep="\n", flush=True)
        # About the model, which stays the same.
        pictures = [picture for picture in pictures if picture != "positions"]
    if failures:
        sys.exit("\n".join([f"{len(failures)} of {len(arguments.images)} images were left out:", *failures]))


if __name__ == "__main__":
    main()
