"""`vit-hf push`: a saved model on the Hugging Face Hub."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from . import PROGRAM
from .parsing import CommandParser, announce, fail, parse, read_arguments


if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor

DESCRIPTION = f"""
Publish a saved model on the Hugging Face Hub, with its code and a model card.

  hf auth login
  {PROGRAM} push runs/photos me/photos --license apache-2.0 --examples large.jpg --private

Of a folder that {PROGRAM} finetune wrote, the card says by itself which checkpoint and data it began
with, what was measured, and how it was trained. Elsewhere the model loads by
from_pretrained("me/photos", trust_remote_code=True). The token is the one of `hf auth login`, or
HF_TOKEN.
"""
CARD = ("license", "base_model", "dataset", "summary", "limitations")


def make_parser(name: str = "push") -> CommandParser:
    parser = CommandParser(name, [], DESCRIPTION, "FOLDER NAME [flag ...]")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="a model and image processor that save_pretrained wrote"
    )
    parser.add_argument("repo_id", metavar="NAME", help="owner/name, or a name of your own")
    parser.add_argument("--license", help="such as apache-2.0; default: that of the base model on the Hub")
    parser.add_argument("--base_model", help="checkpoint it was fine-tuned from; default: as the run says")
    parser.add_argument("--dataset", help="data that it was trained on; default: as the run says")
    parser.add_argument("--summary", help="first words of the card; default: made from what is known")
    parser.add_argument("--limitations", help="what the model cannot do; default: a general warning")
    parser.add_argument(
        "--examples",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="images to show on the card, PUBLISHED with it",
    )
    parser.add_argument("--private", action="store_true", help="make a new repository a private one")
    parser.add_argument("--revision", help="branch to commit to; default: main")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--max_shard_size", default="5GB", help="of a file of weights")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run classes of your own that are in the folder"
    )
    return parser


def check_folder(folder: Path) -> None:
    """Raises FileNotFoundError if a folder holds no model."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: name the folder that save_pretrained wrote")


def load(folder: Path, trust_remote_code: bool) -> tuple["PreTrainedModel", "BaseImageProcessor"]:
    """Loads a model, of the class it was saved as, and its image processor."""
    from transformers import AutoImageProcessor

    import vit_hf

    [name] = json.loads((folder / "config.json").read_text()).get("architectures") or [None]
    model_class = getattr(vit_hf, str(name), None)
    if not name or model_class is None:
        raise ValueError(
            f"{folder} holds a {name}, which is no model of vit_hf: make it one with {PROGRAM} convert"
        )
    model = model_class.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return model, AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)


def run(name: str, argv: list[str]) -> None:
    """Publishes, and says where."""
    parser = make_parser(name)
    (arguments,) = parse(parser, read_arguments(parser, argv))
    announce(f"{parser.prog}: checking token, repository and network ...", imports=False)
    from ..hub.access import check_access

    try:
        check_folder(arguments.folder)
        check_access(arguments.repo_id)
    except (OSError, ValueError) as error:
        fail(parser, error)
    announce(f"{parser.prog}: loading {arguments.folder} ...")
    from transformers.utils.logging import disable_progress_bar

    from ..hub.push import push_to_hub
    from ..training.output_dir import read_run

    disable_progress_bar()
    card = {field: getattr(arguments, field) for field in CARD if getattr(arguments, field)}
    try:
        model, image_processor = load(arguments.folder, arguments.trust_remote_code)
        info = push_to_hub(
            model,
            image_processor,
            arguments.repo_id,
            examples=arguments.examples,
            private=arguments.private or None,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
            max_shard_size=arguments.max_shard_size,
            **{**read_run(arguments.folder), **card},
        )
    except (OSError, ValueError, ImportError) as error:
        fail(parser, error)
    print(f"Pushed: {info.pr_url or info.commit_url}")
