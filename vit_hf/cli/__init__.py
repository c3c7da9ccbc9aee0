"""`vit-hf`: one command for each job. Arguments are read, and `--help` answered, before torch is imported."""

import difflib
import importlib
import os
import sys
import textwrap

from ..model.version import __version__


PROGRAM = "vit-hf"
# Commands with a summary of each, by heading. The module of a command has its name, `train` has several.
COMMANDS: dict[str, dict[str, str]] = {
    "Train": {
        "finetune": "train a classifier on your images, with or without patch selection",
        "segment": "train a model that tells the class of each pixel",
        "detect": "train one of transformers' detectors over an adaptive ViT",
        "pretrain": "train on images without labels, as a masked autoencoder or by masked image modeling",
        "distill": "teach a checkpoint, without labels, to keep its answer with few patches",
        "tune": "choose learning rate and other settings by many short runs (Optuna)",
        "search": "search for a good architecture under a budget (an elastic network and evolution)",
    },
    "Use": {
        "predict": "predict labels of image files, folders or whole collections",
        "evaluate": "measure a saved classifier on labeled images",
        "compare": "compare every strategy for large images on your own data",
        "explain": "draw which patches were kept, and why",
        "app": "try a checkpoint in the browser",
    },
    "Share": {
        "convert": "turn checkpoints of ViT, DINO, CLIP, Swin, timm ... into this library's, or back",
        "push": "publish a model on the Hugging Face Hub, with its code and a card",
        "configs": "list the configurations that come with the package",
    },
}
TRAINING = ("finetune", "segment", "detect", "pretrain", "distill")


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: name of the command and its arguments; by default those of the process.

    Returns:
        The exit status. Wrong arguments and errors that a message explains end the program by `SystemExit`.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    name, *arguments = argv
    names = [command for commands in COMMANDS.values() for command in commands]
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        print(f"{PROGRAM}: there is no command {name!r}.{hint}\n\n{overview()}", file=sys.stderr)
        return 2
    module = importlib.import_module(f".{'train' if name in TRAINING else name}", __name__)
    try:
        status = module.run(name, arguments) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of `vit-hf configs | head` has enough. What Python would still write, it writes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"\n{PROGRAM} {name}: interrupted", file=sys.stderr)
        return 130
    return status


def overview() -> str:
    """Describes all commands, a line each."""
    lines = [f"usage: {PROGRAM} COMMAND [argument ...]", ""]
    lines += textwrap.wrap(
        "Vision Transformers for large images: compute on the patches that matter, and stay in transformers.",
        100,
    )
    for heading, commands in COMMANDS.items():
        lines += ["", f"{heading}:", *(f"  {name:<10} {summary}" for name, summary in commands.items())]
    lines += ["", f"{PROGRAM} COMMAND --help describes a command, --help-all all of its flags."]
    return "\n".join(lines)
