"""Version of the code that a checkpoint carries, and how models, configurations and image processors save it.

In the package `vit_hf/hub/remote_code.py` joins the files of this folder into one. transformers copies a file
that came with a checkpoint when that is saved again.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .version import __version__


logger = logging.get_logger(__name__)

IS_REMOTE = __name__.startswith("transformers_modules.")
# Last line of a generated file; what follows is the SHA-256 of the lines above.
CHECKSUM = "# SHA-256 of the lines above: "
IMAGE_PROCESSORS = {
    "torchvision": "image_processing_adaptive_vit.AdaptiveViTImageProcessor",
    "pil": "image_processing_adaptive_vit.AdaptiveViTImageProcessorPil",
}


class CodeWriter:
    """Hooks that run when a model is built or saved.

    This class does nothing, which suits remote code; that of the package is in `hub/remote_code.py`.
    """

    def check(self, model: Any) -> None:
        """Warns about code that could not be saved with a new model."""

    def describe(self, saved: Any) -> None:
        """Writes into a configuration or image processor which file holds its classes."""

    def save(self, saved: Any, folder: str | PathLike) -> None:
        """Writes the code into the folder of a saved model, configuration or image processor."""


# The last one writes. The package appends its own when it is imported.
code_writers = [CodeWriter()]


class SavesCode:
    """Mixin that saves the code with a model, configuration or image processor."""

    def save_pretrained(self, save_directory: str | PathLike, *args, **kwargs):
        """Saves as in transformers, and writes the code that loads it elsewhere."""
        code_writers[-1].describe(self)
        result = super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            code_writers[-1].save(self, save_directory)
        return result

    def _upload_modified_files(self, working_dir: str | PathLike, *args, **kwargs):
        # save_pretrained(push_to_hub=True) uploads before it returns.
        code_writers[-1].save(self, working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)


def name_classes(config: Any) -> None:
    """Names in a configuration the file and the class for every Auto class."""
    classes = {auto: f"{config.code_file}.{name}" for auto, name in config.auto_classes.items()}
    before = getattr(config, "auto_map", None) or {}
    config.auto_map = {**before, **classes, "AutoImageProcessor": IMAGE_PROCESSORS}


@functools.cache
def code_version(folder: Path) -> str:
    """Version and digest of the package's code in `folder`, such as "0.1.0+1a2b3c4d"."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"


def installed_version() -> str | None:
    """Version of the package's code, which need not be imported; None if it is not installed."""
    try:
        spec = importlib.util.find_spec("vit_hf")
    except (ImportError, ValueError):
        return None
    return code_version(Path(spec.origin).parent / "model") if spec and spec.origin else None


def was_changed(file: Path) -> bool:
    """Returns whether a generated file was edited; False if there is none."""
    if not file.is_file():
        return False
    text, _, checksum = file.read_text(encoding="utf-8").rpartition(CHECKSUM)
    return hashlib.sha256(text.encode()).hexdigest() != checksum.strip()


def report_code(source: str, values: Mapping[str, Any], code_file: str) -> None:
    """Logs a line if a checkpoint came with other code than is installed: which of the two runs.

    Args:
        source: folder of the checkpoint, or its name on the Hub.
        values: its configuration.
        code_file: name of its generated file, without the ending.
    """
    theirs, ours = values.get("vit_hf_version"), installed_version()
    file = Path(__file__) if IS_REMOTE else Path(source) / f"{code_file}.py"
    changed = was_changed(file)
    if ours is None or theirs is None or (theirs == ours and not changed):
        return
    theirs += ", with changes" if changed else ""
    if IS_REMOTE:
        logger.warning_once(
            f"The code that came with {source}, of vit_hf {theirs}, is used; the installed vit_hf {ours} "
            "differs. To use that, import vit_hf first."
        )
    else:
        logger.warning_once(
            f"{source} came with the code of vit_hf {theirs}; the installed vit_hf {ours} is used. "
            "To run the code that came with it, load it with trust_remote_code=True, without "
            "importing vit_hf."
        )
