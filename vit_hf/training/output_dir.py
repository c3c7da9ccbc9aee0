"""Output folders of runs: which to resume and which to refuse; nothing is ever deleted in them."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from ..model.pretrained import module_names
from .callbacks import UNAVERAGED_WEIGHTS_NAME
from .curves import CURVES_CAPTION, CURVES_NAME


# Arguments of a run, written when it starts. The underscore keeps Trainer from uploading the file, which
# contains local paths.
RUN_ARGUMENTS_NAME = "_run_arguments.json"

# Fields of a config that change without the model changing.
INCIDENTAL_FIELDS = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "transformers_version",
    "use_cache",
    "vit_hf_version",
}

# Saved in a checkpoint's optimizer and scheduler: Trainer resumes with the saved values, whatever the
# arguments say.
SAVED_RATES = ("learning_rate", "weight_decay", "layer_decay", "backbone_lr_factor")

# Files that Trainer needs to resume. The state is written last, so a folder without it is incomplete.
CHECKPOINT_FILES = ("trainer_state.json", "scheduler.pt")
# Alternatives: whole models, FSDP, and FSDP with sharded checkpoints.
OPTIMIZER_NAMES = ("optimizer.pt", "optimizer.bin", "optimizer_0")


def find_last_checkpoint(output_dir: str | Path, also: Iterable[str] = ()) -> Path | None:
    """Returns the latest complete checkpoint, or None.

    Args:
        output_dir: folder of the run.
        also: names of preferred files; a checkpoint without them is returned only if none has them.
    """
    complete = [folder for folder in _checkpoints(output_dir) if _is_complete(folder)]
    preferred = [folder for folder in complete if all((folder / name).is_file() for name in also)]
    return next(iter(preferred or complete), None)


def find_resumable(output_dir: str, model: PreTrainedModel, averaged: bool = False) -> Path | None:
    """Returns the checkpoint in `output_dir` to resume, or None if there is none.

    Args:
        output_dir: folder of the run.
        model: model that resumes.
        averaged: whether the run keeps a moving average of the weights.

    Raises:
        ValueError: if the checkpoint belongs to another model, or was made with a moving average and none is
            requested now.
        FileExistsError: if there is a finished model but no checkpoint.
    """
    checkpoint = find_last_checkpoint(output_dir, [UNAVERAGED_WEIGHTS_NAME] if averaged else [])
    if checkpoint is None:
        if (Path(output_dir) / SAFE_WEIGHTS_NAME).is_file():
            raise FileExistsError(
                f"output_dir {output_dir} holds a finished model and no checkpoint to resume: name another "
                "folder, or set overwrite_output_dir"
            )
        return None
    check_same_model(checkpoint, model)
    if not averaged and (checkpoint / UNAVERAGED_WEIGHTS_NAME).is_file():
        raise ValueError(
            f"{checkpoint} belongs to a run with ema_decay; give it again, or set overwrite_output_dir"
        )
    return checkpoint


def set_incomplete_aside(output_dir: str | Path, checkpoint: Path) -> None:
    """Renames checkpoints later than the one to resume to `_incomplete-<name>`, which is not uploaded.

    Otherwise Trainer would take them for the latest, and delete its own new ones to make room.
    """
    for folder in _checkpoints(output_dir):
        if folder == checkpoint:
            return
        target = folder.with_name(f"_incomplete-{folder.name}")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)


def _checkpoints(output_dir: str | Path) -> list[Path]:
    """Returns the folders named like checkpoints, the latest first."""
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    steps = {folder.name.rpartition("-")[2]: folder for folder in folders if folder.is_dir()}
    return [steps[step] for step in sorted(filter(str.isdigit, steps), key=int, reverse=True)]


def _is_complete(folder: Path) -> bool:
    if not all((folder / name).is_file() for name in CHECKPOINT_FILES):
        return False
    if not any((folder / name).exists() for name in OPTIMIZER_NAMES):
        return False
    try:
        json.loads((folder / "trainer_state.json").read_text())
    except ValueError:
        return False
    return True


def check_output_dir(output_dir: str | Path) -> None:
    """Refuses a folder with files that are not a run's.

    Raises:
        NotADirectoryError: if it is a file.
        FileExistsError: if it is not empty and has neither a checkpoint nor a run's arguments.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output_dir {folder} is a file; name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / RUN_ARGUMENTS_NAME).is_file() and find_last_checkpoint(folder) is None:
        raise FileExistsError(
            f"output_dir {folder} is not empty and holds no run of this script; name another folder"
        )


def set_aside(output_dir: str | Path) -> Path | None:
    """Renames an earlier run's folder to `<output_dir>-previous-<n>`; returns the new path, or None."""
    folder = Path(output_dir)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    number = 1
    while (target := folder.with_name(f"{folder.name}-previous-{number}")).exists():
        number += 1
    return folder.rename(target)


def read_run(output_dir: str | Path) -> dict[str, Any]:
    """Reads a run for its model card; returns arguments of `vit_hf.hub.model_card.make_model_card`."""
    card: dict[str, Any] = {"metrics": {}}
    for split in ("eval", "test"):
        path = Path(output_dir, f"{split}_results.json")
        if path.is_file():
            card["metrics"] |= json.loads(path.read_text())
    path = Path(output_dir, RUN_ARGUMENTS_NAME)
    if path.is_file():
        arguments = json.loads(path.read_text())
        card |= describe_run(arguments)
    curves = Path(output_dir, CURVES_NAME)
    if curves.is_file():
        card["pictures"] = {CURVES_CAPTION: str(curves)}
    return card


def describe_run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments of `make_model_card` from the arguments of a run."""
    return {
        "training_arguments": arguments,
        "base_model": arguments["model_name_or_path"],
        "dataset": arguments["dataset"],
    }


def check_same_model(checkpoint: Path, model: PreTrainedModel) -> None:
    """Refuses to resume a run with another model.

    Raises:
        ValueError: for fields of the config that differ, or a missing weight; names them.
    """
    config = model.config
    # Both through JSON, where tuples are lists.
    saved = json.loads(type(config).from_pretrained(checkpoint).to_json_string(use_diff=False))
    mine = json.loads(config.to_json_string(use_diff=False))
    differing = [
        f"{name} was {saved.get(name)} and is {mine.get(name)}"
        for name in sorted((saved.keys() | mine.keys()) - INCIDENTAL_FIELDS)
        if saved.get(name) != mine.get(name)
    ]
    if differing:
        raise ValueError(
            f"cannot resume {checkpoint} with another model: {'; '.join(differing)}. Give the same arguments "
            "as before, or another output_dir, or set overwrite_output_dir."
        )
    weights = checkpoint / SAFE_WEIGHTS_NAME
    if weights.is_file():
        # Trainer would only warn, and continue with random weights.
        with safe_open(weights, framework="pt") as file:
            saved_names = set(module_names(model, file.keys()).values())
        values = model.state_dict()
        # Of tied weights only one is saved.
        addresses = {values[name].data_ptr() for name in saved_names & values.keys()}
        missing = sorted(
            name for name in values.keys() - saved_names if values[name].data_ptr() not in addresses
        )
        if missing:
            raise ValueError(
                f"cannot resume {checkpoint}: {weights} lacks {missing[0]} ({len(missing)} such weights)"
            )


def check_same_rates(output_dir: str | Path, arguments: dict[str, Any]) -> None:
    """Refuses to resume with other learning rates, which Trainer would silently ignore.

    Raises:
        ValueError: for arguments that differ from those of the run in `output_dir`; names them.
    """
    path = Path(output_dir, RUN_ARGUMENTS_NAME)
    saved = json.loads(path.read_text()) if path.is_file() else {}
    differing = [
        f"{name} was {saved[name]} and is {arguments[name]}"
        for name in SAVED_RATES
        if name in saved and saved[name] != arguments[name]
    ]
    if differing:
        raise ValueError(
            f"cannot resume {output_dir} with other rates: {'; '.join(differing)}. Give the same as before; "
            "or, to change them, another output_dir and the last checkpoint as model_name_or_path; or set "
            "overwrite_output_dir."
        )
