"""Commands to go on with after a run."""

import json
import shlex
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..arguments import DataArguments
from ..readers.suffixes import is_whole_image


def next_commands(
    groups: Sequence[Any], program: str, output_dir: str, splits: Collection[str] = ()
) -> list[str]:
    """Writes the commands to go on with, a line each, with the paths of the run.

    Args:
        groups: arguments of the task.
        program: the command that ran, such as "vit-hf finetune".
        output_dir: folder of the run.
        splits: names of the held-out images.
    """
    program, _, command = program.partition(" ")
    model = f"--model_name_or_path {shlex.quote(str(output_dir))}"
    data = next((group for group in groups if type(group) is DataArguments), None)
    if command == "finetune" and data is not None:
        image = shlex.quote(first_image(data.dataset) or "IMAGE.jpg")
        output = shlex.quote(str(Path(output_dir, "explanations")))
        split = next((f" --split {name}" for name in ("test", "validation") if name in splits), "")
        commands = [
            f"evaluate {model} {flags_of(data)}{split}",
            f"explain {model} --images {image} --output {output}",
        ]
    elif command == "pretrain":
        commands = [f"finetune {model} --dataset LABELED_IMAGES --output_dir FOLDER"]
    else:
        return []
    return ["Next:", *(f"  {program} {line}" for line in commands)]


def flags_of(arguments: Any) -> str:
    """Writes the fields of a dataclass that differ from their defaults as flags."""
    words = []
    for entry in fields(arguments):
        value = getattr(arguments, entry.name)
        if value not in (entry.default, {}):  # options that were not given are an empty dict
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            words += [f"--{entry.name}", text]
    return shlex.join(words)


def first_image(dataset: str) -> str | None:
    """Finds an image in a folder; None if the data are no folder of images."""
    files = Path(dataset).rglob("*") if Path(dataset).is_dir() else ()
    return next((str(file) for file in files if is_whole_image(file) and file.is_file()), None)
