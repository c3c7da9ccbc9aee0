"""`vit-hf app`: a page to try a checkpoint on."""

import sys
import tempfile
from pathlib import Path

from ..arguments import AppArguments
from . import PROGRAM
from .parsing import CommandParser, announce, fail, parse, read_arguments


DESCRIPTION = f"""
A page to try a checkpoint on: drop an image, choose a selector and how many patches, and see what comes
of it.

  {PROGRAM} app --model_name_or_path runs/photos
  {PROGRAM} app --model_name_or_path google/vit-base-patch16-224 --examples scan.png photo.jpg
  {PROGRAM} app --model_name_or_path user/model --space user/name   # as a Hugging Face Space

Any classifier that vit_hf.convert takes will do. Needs Gradio: pip install vit_hf[app].
"""


def make_parser(name: str = "app") -> CommandParser:
    return CommandParser(name, [AppArguments], DESCRIPTION, "--model_name_or_path MODEL [flag ...]")


def find_examples(arguments: AppArguments) -> list[Path]:
    """Finds the images to pick from, and says on standard error what is left out."""
    from ..data.image_folders import LeftOut
    from ..data.images import find_images
    from ..readers.suffixes import is_whole_image

    examples, beside = arguments.examples, Path(arguments.model_name_or_path, "examples")
    if examples is None and beside.is_dir() and any(beside.iterdir()):
        examples = [str(beside)]
    left_out = LeftOut()
    found = find_images(examples or [], left_out, is_whole_image)
    for note in left_out.notes():
        print(note, file=sys.stderr)
    return found


def make_space(arguments: AppArguments, examples: list[Path]) -> str:
    """Writes the folder of a Space, uploads it if that is asked for, and returns where it is."""
    from ..app.space import push_space, write_space

    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.write_space or Path(scratch, "space")
        write_space(folder, arguments.model_name_or_path, examples)
        if arguments.space is None:
            return f"{folder}: try it with `python app.py` there"
        return push_space(folder, arguments.space, arguments.private)


def run(name: str, argv: list[str]) -> None:
    """Serves the page, or writes a Space."""
    parser = make_parser(name)
    arguments, _ = parse(parser, read_arguments(parser, argv))
    announce(f"{parser.prog}: importing torch and transformers ...")
    from huggingface_hub.errors import HfHubHTTPError

    try:
        examples = find_examples(arguments)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        if arguments.write_space or arguments.space:
            print(make_space(arguments, examples))
            return
        announce(f"{parser.prog}: importing Gradio ...")
        from ..app.page import launch

        announce(f"{parser.prog}: loading {arguments.model_name_or_path}, then starting the page ...")
        launch(
            arguments.model_name_or_path,
            examples,
            arguments.device,
            arguments.server_name,
            arguments.server_port,
        )
    except (HfHubHTTPError, ImportError, OSError, RuntimeError, ValueError) as error:
        fail(parser, error)
