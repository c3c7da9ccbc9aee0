"""Which code a checkpoint came with, which one is installed, and which of them runs."""

import functools
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

from .version import __version__


logger = logging.get_logger(__name__)

HERE = Path(__file__).parent
IS_INSTALLED = not __name__.startswith("transformers_modules.")
# Written anew for each checkpoint.
DIFFERING = ("__init__.py", "shipped_classes.py")


@functools.cache
def installed_version() -> str:
    """Version and digest of the code of this package, such as "0.1.0+1a2b3c4d"."""
    digest = hashlib.sha256()
    for path in sorted(HERE.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"


def stamp(config: PreTrainedConfig) -> None:
    """Notes in a configuration which code is saved with it. Code that came with a checkpoint keeps its note."""
    if IS_INSTALLED:
        config.vit_hf_version = installed_version()


def report_code(source: str, values: Mapping[str, Any]) -> None:
    """Logs a line if a checkpoint came with other code than is installed: which of them is used.

    Args:
        source: folder of the checkpoint, or its name on the Hub.
        values: its configuration.
    """
    theirs = values.get("vit_hf_version")
    if IS_INSTALLED:
        differs = (
            _differ(Path(source), HERE)
            if Path(source).is_dir()
            else theirs not in (None, installed_version())
        )
        if differs:
            logger.warning_once(
                f"{source} came with the code of vit_hf {theirs}; the installed vit_hf {installed_version()} is used. "
                "To run the code that came with it, load it with trust_remote_code=True where vit_hf is not imported."
            )
        return
    package = _find_package()
    if package and _differ(HERE, package):
        logger.warning_once(
            f"The code that came with {source}, of vit_hf {theirs}, is used; the vit_hf that is installed in "
            f"{package.parent} differs. To use that, import vit_hf first."
        )


def _differ(folder: Path, other: Path) -> bool:
    """Whether a file of ours that is in both folders is not the same."""
    paths = [
        path for path in folder.glob("*.py") if path.name not in DIFFERING and (other / path.name).is_file()
    ]
    return any(path.read_bytes() != (other / path.name).read_bytes() for path in paths)


def _find_package() -> Path | None:
    """The folder of the installed package's code, which is not imported for it."""
    try:
        spec = importlib.util.find_spec("vit_hf")
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent / "model" if spec and spec.origin else None
