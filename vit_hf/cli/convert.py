"""`vit-hf convert`: checkpoints of other families."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import parse_json
from . import PROGRAM
from .parsing import CommandParser, announce, fail, parse, read_arguments


if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor

DESCRIPTION = f"""
Turn a Vision Transformer of another family into an AdaptiveViT with the same outputs, or a Swin into an
AdaptiveSwin.

  {PROGRAM} convert facebook/dinov2-base --output runs/dinov2
  {PROGRAM} convert my_deit/ --output runs/deit \\
      --fields '{{"patch_selector": "saliency", "num_selected_patches": 196}}'
  {PROGRAM} convert weights.pth --architecture vit_small_patch16_224 --output runs/small   # timm's name
  {PROGRAM} convert ViT-B_16.npz --to vit --output runs/stock   # transformers' ViTForImageClassification
  {PROGRAM} convert runs/mine --to npz --output mine.npz        # google-research/vision_transformer

Writes model, image processor and code to a folder that from_pretrained loads; with --to vit a stock ViT
and its image processor, with --to npz a file.
"""
FORMATS = ("adaptive_vit", "vit", "npz")


def make_parser(name: str = "convert") -> CommandParser:
    parser = CommandParser(name, [], DESCRIPTION, "SOURCE --output FOLDER [flag ...]")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="checkpoint, local or on the Hub, of transformers or timm, or a file of weights (.npz, "
        ".safetensors, .bin, .pth)",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write; with --to npz, file")
    parser.add_argument("--to", choices=FORMATS, default="adaptive_vit", help="what to write")
    parser.add_argument("--architecture", help="timm's name of the model, where the source is weights alone")
    parser.add_argument(
        "--fields",
        type=_read_fields,
        default={},
        help="of AdaptiveViTConfig (of a Swin, AdaptiveSwinConfig), as JSON",
    )
    return parser


def _read_fields(text: str) -> dict:
    try:
        return parse_json("fields", text)
    except ValueError as error:  # argparse shows no other message
        raise argparse.ArgumentTypeError(str(error)) from error


def load(
    source: str, architecture: str | None, fields: dict
) -> tuple["PreTrainedModel", "BaseImageProcessor"]:
    """Loads a checkpoint as ours, which it may be already."""
    from transformers import PreTrainedConfig

    import vit_hf

    from .. import AdaptiveViTConfig, AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
    from ..checkpoints.convert import convert
    from ..checkpoints.timm_files import SUFFIXES

    if architecture is None and Path(source).suffix not in (".npz", *SUFFIXES):
        config, _ = PreTrainedConfig.get_config_dict(source)
        if config.get("model_type") == AdaptiveViTConfig.model_type:
            [name] = config.get("architectures") or ["AdaptiveViTForImageClassification"]
            model = getattr(vit_hf, name, AdaptiveViTForImageClassification).from_pretrained(source, **fields)
            options = {}
            if "patch_selector" in fields and fields["patch_selector"] is None:
                options = {"patch_selector": None, "num_selected_patches": None, "return_patches": False}
            return model.eval(), AdaptiveViTImageProcessor.from_pretrained(source, **options)
    return convert(source, architecture, **fields)


def write(
    model: "PreTrainedModel", image_processor: "BaseImageProcessor", output: Path, to: str
) -> "PreTrainedModel":
    """Writes a model in one of `FORMATS`, and returns what was written."""
    from ..checkpoints.npz import save_npz
    from ..checkpoints.plain import processor_to_transformers, to_transformers

    if to == "npz":
        save_npz(model, output)
        return model
    if to == "vit":
        model, image_processor = to_transformers(model), processor_to_transformers(image_processor)
    model.save_pretrained(output)
    image_processor.save_pretrained(output)
    return model


def run(name: str, argv: list[str]) -> None:
    """Converts, and says what was written."""
    parser = make_parser(name)
    (arguments,) = parse(parser, read_arguments(parser, argv))
    if arguments.to == "npz" and arguments.output.suffix != ".npz":
        parser.error(f"--to npz writes a file, whose name must end in .npz, not {arguments.output}")
    announce(f"{parser.prog}: loading {arguments.source} ...")
    from huggingface_hub.errors import StrictDataclassError

    try:
        model, image_processor = load(arguments.source, arguments.architecture, arguments.fields)
        announce(f"{parser.prog}: writing {arguments.output} ...")
        model = write(model, image_processor, arguments.output, arguments.to)
    except StrictDataclassError as error:
        fail(parser, error.__cause__ or error)
    except (OSError, ValueError, ImportError) as error:
        fail(parser, error)
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters written to {arguments.output}")
