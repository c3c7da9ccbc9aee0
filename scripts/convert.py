"""Turn a Vision Transformer of another family into an AdaptiveViT with the same outputs, or a Swin into an
AdaptiveSwin.

    python scripts/convert.py facebook/dinov2-base --output runs/dinov2
    python scripts/convert.py my_deit/ --output runs/deit --fields '{"patch_selector": "saliency",
    "num_selected_patches": 196}' python scripts/convert.py weights.pth --architecture vit_small_patch16_224
    --output runs/small  # timm's name for it python scripts/convert.py ViT-B_16.npz --to vit --output
    runs/stock  # transformers' own ViTForImageClassification python scripts/convert.py runs/mine --to npz
    --output mine.npz       # google-research/vision_transformer

Writes model, image processor and code to a folder that `from_pretrained` loads; with `--to vit` a stock ViT
and its image processor, with `--to npz` a file.
"""

import argparse
import json
import sys
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from vit_hf import (
    AdaptiveViTConfig,
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
    convert,
)
from vit_hf.checkpoints.families import FAMILIES
from vit_hf.checkpoints.npz import save_npz
from vit_hf.checkpoints.plain import processor_to_transformers, to_transformers
from vit_hf.checkpoints.swin import SWIN_FAMILIES
from vit_hf.checkpoints.timm_files import SUFFIXES


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source",
        help="checkpoint, local or on the Hub, of timm, or of transformers, or a file of weights: "
        f"adaptive_vit, {', '.join(sorted([*FAMILIES, *SWIN_FAMILIES]))}, .npz, .safetensors, .bin, .pth",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write; with --to npz, file")
    parser.add_argument("--to", choices=WRITERS, default="adaptive_vit", help="what to write")
    parser.add_argument("--architecture", help="what timm calls the model, where the source is weights alone")
    parser.add_argument(
        "--fields",
        type=json.loads,
        default={},
        help="of AdaptiveViTConfig (of a Swin, AdaptiveSwinConfig), as JSON",
    )
    return parser.parse_args(argv)


def load(source: str, architecture: str | None, fields: dict) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The source as ours, whether it is that already or not."""
    if architecture is None and Path(source).suffix not in FILES:
        config, _ = PreTrainedConfig.get_config_dict(source)
        if config.get("model_type") == AdaptiveViTConfig.model_type:
            model = AdaptiveViTForImageClassification.from_pretrained(source, **fields)
            return model.eval(), AdaptiveViTImageProcessor.from_pretrained(source)
    return convert(source, architecture, **fields)


def write_ours(model: PreTrainedModel, image_processor: BaseImageProcessor, output: Path) -> PreTrainedModel:
    model.save_pretrained(output)
    image_processor.save_pretrained(output)
    return model


def write_vit(model: PreTrainedModel, image_processor: BaseImageProcessor, output: Path) -> PreTrainedModel:
    return write_ours(to_transformers(model), processor_to_transformers(image_processor), output)


def write_npz(model: PreTrainedModel, image_processor: BaseImageProcessor, output: Path) -> PreTrainedModel:
    save_npz(model, output)
    return model


FILES = (".npz", *SUFFIXES)
WRITERS = {"adaptive_vit": write_ours, "vit": write_vit, "npz": write_npz}


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.to == "npz" and arguments.output.suffix != ".npz":
        sys.exit(f"convert.py: --to npz writes a file, whose name must end in .npz, not {arguments.output}")
    try:
        model, image_processor = load(arguments.source, arguments.architecture, arguments.fields)
        model = WRITERS[arguments.to](model, image_processor, arguments.output)
    except StrictDataclassError as error:
        sys.exit(f"convert.py: {error.__cause__ or error}")
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"convert.py: {error}")
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters written to {arguments.output}")


if __name__ == "__main__":
    main()
