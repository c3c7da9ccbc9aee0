"""Publish a saved model on the Hugging Face Hub, with its code and a model card.

    hf auth login
    python scripts/push_to_hub.py runs/photos me/photos --license apache-2.0 --examples large.jpg --private

Of a folder that finetune.py wrote, the card says by itself which checkpoint and data it began with, what was
measured, and how it was trained. Elsewhere the model loads by `from_pretrained("me/photos",
trust_remote_code=True)`.

The token is the one of `hf auth login`, or HF_TOKEN.
"""

import argparse
import json
import sys
from pathlib import Path

from transformers import AutoImageProcessor
from transformers.utils.logging import disable_progress_bar

import vit_hf
from vit_hf.training.output_dir import read_run


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a model and image processor that save_pretrained wrote")
    parser.add_argument("repo_id", help="owner/name, or a name of your own")
    parser.add_argument("--license", help="such as apache-2.0; default: that of the base model on the Hub")
    parser.add_argument("--base_model", help="checkpoint it was fine-tuned from; default: as the run says")
    parser.add_argument("--dataset", help="what it was trained on; default: as the run says")
    parser.add_argument("--summary", help="first words of the card; default: what is known")
    parser.add_argument("--limitations", help="what it cannot do; default: a general warning")
    parser.add_argument(
        "--examples",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="images to show on the card, PUBLISHED with it",
    )
    parser.add_argument("--private", action="store_true", help="make a new repository for you alone")
    parser.add_argument("--revision", help="branch to commit to (default: main)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead (default: no)")
    parser.add_argument("--max_shard_size", default="5GB", help="of a file of weights (default: %(default)s)")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run classes of your own in the folder (default: no)"
    )
    return parser.parse_args(argv)


def load(folder: Path, trust_remote_code: bool):
    """Model, of the class it was saved as, and image processor."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: name the folder that save_pretrained wrote")
    [name] = json.loads((folder / "config.json").read_text()).get("architectures") or [None]
    model_class = getattr(vit_hf, str(name), None)
    if not name or model_class is None:
        raise ValueError(
            f"{folder} holds a {name}, which is no model of vit_hf: make it one with scripts/convert.py"
        )
    model = model_class.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return model, AutoImageProcessor.from_pretrained(folder)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    disable_progress_bar()
    given = ("license", "base_model", "dataset", "summary", "limitations")
    card = {name: getattr(arguments, name) for name in given if getattr(arguments, name)}
    try:
        model, image_processor = load(arguments.folder, arguments.trust_remote_code)
        info = vit_hf.push_to_hub(
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
        sys.exit("\n".join([f"push_to_hub.py: {error}", *getattr(error, "__notes__", [])]))
    print(f"Pushed: {info.pr_url or info.commit_url}")


if __name__ == "__main__":
    main()
