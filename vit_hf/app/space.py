"""Writes the folder of a Hugging Face Space that shows the page for one checkpoint."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi
from packaging.requirements import Requirement

from ..checkpoints.loading import check_path
from ..hub.push import check_private


# Folders of the Space: a local checkpoint, and example images.
MODEL, EXAMPLES = "model", "examples"

# Files of a checkpoint to publish; all others stay unpublished.
MODEL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "*.py",
)

APP = '''"""Which patches matter: the page for one checkpoint."""

from pathlib import Path

from vit_hf.app.page import launch


here = Path(__file__).parent
launch({model}, sorted((here / "{examples}").glob("*")))
'''

README = """---
{header}---

# {title}

Drop an image, choose how its patches are selected and how many are kept, and see what the model computes on, what it
predicts, and how long that takes compared with all patches.

The page is `vit_hf.app` of [vit_hf](vit_hf), which is in this Space; `python app.py` runs it on any machine.
"""  # noqa: E501


def write_space(
    folder: str | os.PathLike,
    model_name_or_path: str,
    examples: Sequence[str | os.PathLike] = (),
    title: str = "Which patches matter",
) -> Path:
    """Writes everything that the Space needs, including this package and a local checkpoint.

    Args:
        folder: new or empty folder.
        model_name_or_path: a local folder is copied; the Space downloads a name on the Hub when it starts.
        examples: image files to copy.
        title: title of the Space.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder is not empty.
        FileNotFoundError: if there is no such checkpoint or example.
        importlib.metadata.PackageNotFoundError: if vit_hf is not installed, so that its requirements are
            unknown.
    """
    folder = Path(folder)
    check_path(model_name_or_path)
    examples = [Path(path) for path in examples]
    for path in examples:
        if not path.is_file():
            raise FileNotFoundError(f"There is no example {path}: give an image file.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: give a new or empty folder.")
    requirements = list_requirements()

    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": importlib.metadata.version("gradio"),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "license": "apache-2.0",
    }
    model = repr(model_name_or_path)
    if Path(model_name_or_path).is_dir():
        (folder / MODEL).mkdir()
        for path in (path for pattern in MODEL_FILES for path in Path(model_name_or_path).glob(pattern)):
            shutil.copy(path, folder / MODEL)
        model = f'str(here / "{MODEL}")'
    else:
        header["models"] = [model_name_or_path]
    if examples:
        (folder / EXAMPLES).mkdir()
        for index, path in enumerate(examples):
            shutil.copy(path, folder / EXAMPLES / f"{index}_{path.name}")
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "app.py").write_text(APP.format(model=model, examples=EXAMPLES))
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    header_text = yaml.safe_dump(header, sort_keys=False)
    (folder / "README.md").write_text(README.format(header=header_text, title=title))
    return folder


def list_requirements() -> list[str]:
    """Lists the requirements of `vit_hf[app]` except Gradio, which a Space's README requires."""
    found = [Requirement(text) for text in importlib.metadata.requires("vit_hf") or []]
    wanted = [item for item in found if item.marker is None or item.marker.evaluate({"extra": "app"})]
    return [f"{item.name}{item.specifier}" for item in wanted if item.name != "gradio"]


def push_space(folder: str | os.PathLike, repo_id: str, private: bool = False) -> str:
    """Uploads the folder of `write_space` to a new or existing Space.

    Args:
        repo_id: such as "user/name".
        private: makes a new Space private.

    Returns:
        Its address.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: if the Hub refuses, for instance without a token (`hf auth
            login`).
        ValueError: for `private` if the Space exists and is public.
    """
    api = HfApi()
    url = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    check_private(api, url.repo_id, private, "space")
    api.upload_folder(
        repo_id=url.repo_id,
        repo_type="space",
        folder_path=folder,
        commit_message="Upload page of vit_hf",
        delete_patterns=[f"{MODEL}/*", f"{EXAMPLES}/*"],  # files of another checkpoint
    )
    return str(url)
