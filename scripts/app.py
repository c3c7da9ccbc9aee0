"""A page to try a checkpoint on: drop an image, choose a selector and how many patches, and see what comes of
it.

    python scripts/app.py --model_name_or_path runs/photos
    python scripts/app.py --model_name_or_path google/vit-base-patch16-224 --examples scan.png photo.jpg
    python scripts/app.py --model_name_or_path user/model --space user/name   # as a Hugging Face Space

Any classifier that vit_hf.convert takes will do. Needs Gradio: pip install vit_hf[app].
"""

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError

from vit_hf.app.space import push_space, write_space
from vit_hf.data.image_folders import LeftOut
from vit_hf.data.images import find_images
from vit_hf.readers.suffixes import is_whole_image
from vit_hf.training.command_line import make_parser, parse_arguments


QUICKSTART = "runs/quickstart"


@dataclass(kw_only=True)
class AppArguments:
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": f"checkpoint with its image processor, local or on the Hub; default: {QUICKSTART} if "
            "it is there"
        },
    )
    examples: list[str] | None = field(
        default=None,
        metadata={
            "help": "images to pick from: files, folders and patterns; default: examples/ beside the "
            "checkpoint"
        },
    )
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda; default: an accelerator if there is one"}
    )
    server_name: str = field(
        default="127.0.0.1", metadata={"help": "address to listen at; 0.0.0.0 lets other machines in"}
    )
    server_port: int | None = field(
        default=None, metadata={"help": "port to listen at; default: 7860, or the first free one after it"}
    )
    write_space: str | None = field(
        default=None, metadata={"help": "write a Hugging Face Space to this folder, instead of the page"}
    )
    space: str | None = field(
        default=None, metadata={"help": "upload a Hugging Face Space to this name, such as user/name"}
    )
    private: bool = field(default=False, metadata={"help": "make a Space that is new a private one"})

    def __post_init__(self):
        if self.model_name_or_path is None:
            if not Path(QUICKSTART, "config.json").is_file():
                raise ValueError(
                    "which checkpoint? Give --model_name_or_path, a folder or a name on the Hub such as "
                    "google/vit-base-patch16-224; or run `make quickstart`, whose model in "
                    f"{QUICKSTART} is the default"
                )
            self.model_name_or_path = QUICKSTART
        beside = Path(self.model_name_or_path, "examples")
        if self.examples is None and beside.is_dir() and any(beside.iterdir()):
            self.examples = [str(beside)]
        left_out = LeftOut()
        self.examples = find_images(self.examples or [], left_out, is_whole_image)
        for note in left_out.notes():
            print(note, file=sys.stderr)


def make_space(arguments: AppArguments) -> str:
    """Writes the folder, uploads it if asked to, and says where it is."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.write_space or Path(scratch, "space")
        write_space(folder, arguments.model_name_or_path, arguments.examples)
        if arguments.space is None:
            return f"{folder}: try it with `python app.py` there"
        return push_space(folder, arguments.space, arguments.private)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(make_parser([AppArguments], __doc__), argv)
    try:
        if arguments.write_space or arguments.space:
            print(make_space(arguments))
            return
        from vit_hf.app.page import launch

        launch(
            arguments.model_name_or_path,
            arguments.examples,
            arguments.device,
            arguments.server_name,
            arguments.server_port,
        )
    except (HfHubHTTPError, ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"app.py: {error}")


if __name__ == "__main__":
    main()
