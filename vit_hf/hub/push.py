"""Pushes a model to a repository on the Hub that loads wherever transformers is installed."""

import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, DatasetInfo, HfApi, ModelCard, ModelInfo
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import httpx
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from ..explanations.explain import explain
from ..model.pretrained import AdaptivePreTrainedModel
from .model_card import make_model_card
from .remote_code import files_to_save


logger = logging.get_logger(__name__)

# Files of an earlier push. If they stayed, its shards might be loaded instead of the new weights.
REPLACED = ["model*.safetensors", "model.safetensors.index.json", "examples/*"]
NOT_ALLOWED = (401, 403)


def push_to_hub(
    model: AdaptivePreTrainedModel,
    image_processor: BaseImageProcessor,
    repo_id: str,
    *,
    examples: Sequence[Any] = (),
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload model",
    max_shard_size: int | str = "5GB",
    **card: Any,
) -> CommitInfo:
    """Publishes a model: weights (safetensors), configuration, image processor, their code and a model card.

    It loads elsewhere with `from_pretrained(repo_id, trust_remote_code=True)`, or after `import vit_hf`. An
    existing repository gets a new commit, with a new card.

    Args:
        model: a model of any class of this package.
        image_processor: the model's own.
        repo_id: "owner/name", or a name in your own namespace.
        examples: images, as for `explain`, that the card shows with their kept patches and predictions. They
            are published with it.
        private: makes a new repository private; None for the default of your organization.
        token: token with permission to write; by default that of `hf auth login`, or HF_TOKEN.
        revision: branch to commit to, created if missing, or pull request ("refs/pr/1"); default "main".
        create_pr: opens a pull request instead.
        commit_message: message of the commit.
        max_shard_size: larger weights are split into several files.
        card: arguments of `make_model_card`: `license` (by default that of `base_model`),
            `base_model`, `dataset`, `metrics`, `training_arguments`, `summary`, `limitations` and others.

    Returns:
        The commit, with its `oid` and `commit_url`.

    Raises:
        RemoteCodeError: if the file of one of your own classes could not be loaded elsewhere; nothing was
            uploaded.
        ValueError: if the Hub refuses the metadata of the card; for `private` if the repository exists and is
            public.
        huggingface_hub.errors.HfHubHTTPError: for an error of the Hub, for instance 401 for a wrong token.
        ConnectionError: if the Hub could not be reached. A note on this and any other error tells where the
            files are and how to push them again.
    """
    for saved in (model, image_processor):
        files_to_save(saved)
    folder = Path(tempfile.mkdtemp(prefix="vit_hf-"))
    with keeping(folder, repo_id, private, revision, *(["--create-pr"] if create_pr else [])):
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        image_processor.save_pretrained(folder)
        write_card(model, image_processor, folder, examples, repo_id=repo_id, token=token, **card)
        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        check_private(api, repo, private)
        if revision not in (None, "main") and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, exist_ok=True)
        info = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            delete_patterns=REPLACED,
        )
    shutil.rmtree(folder)
    return info


def write_card(
    model: AdaptivePreTrainedModel,
    image_processor: BaseImageProcessor,
    folder: Path,
    examples: Sequence[Any] = (),
    *,
    repo_id: str,
    token: str | bool | None = None,
    **card: Any,
) -> ModelCard:
    """Writes `README.md` and pictures of `examples` to the folder of a saved model; see `push_to_hub`."""
    base = repo_info(card.get("base_model"), "model", token)
    card["base_model"] = base.id if base else None
    if card.get("license") is None and base and base.card_data:
        card["license"] = base.card_data.license
    if card.get("license") is None:
        logger.warning("The model card has no license: give one, such as license='apache-2.0'.")
    if card.get("dataset") and not repo_info(card["dataset"], "dataset", token):
        card["dataset"] = Path(card["dataset"]).absolute().name
    pictures = dict(card.pop("pictures", None) or {})
    for caption, file in pictures.items():
        path = Path(file)
        is_there = not path.is_absolute() and (folder / path).is_file()
        if path.is_file() and not is_there:
            shutil.copy(path, folder / path.name)
            pictures[caption] = path.name
    if len(examples):
        explanations = explain(model, image_processor, list(examples), folder / "examples", ["overview"])
        for explanation in explanations:
            file = Path(explanation.files["overview"])
            pictures[f"{explanation.name}: kept patches and prediction"] = f"examples/{file.name}"
    card.setdefault("model_name", repo_id.rpartition("/")[2])
    result = make_model_card(model, image_processor, repo_id=repo_id, pictures=pictures, **card)
    result.save(folder / "README.md")
    return result


def repo_info(
    name: str | None, repo_type: str, token: str | bool | None = None
) -> ModelInfo | DatasetInfo | None:
    """Returns the Hub's information on a model or data set: only its name offline, None if missing."""
    if name is None or Path(name).exists():
        return None
    try:
        return HfApi(token=token).repo_info(name, repo_type=repo_type)
    except (RepositoryNotFoundError, HFValidationError):
        return None
    except (httpx.HTTPError, OSError):
        return ModelInfo(id=name) if repo_type == "model" else DatasetInfo(id=name)


def check_private(api: HfApi, repo_id: str, private: bool | None, repo_type: str = "model") -> None:
    """Checks that files meant to be private do not go to an existing public repository.

    Raises:
        ValueError: if the repository is public.
    """
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise ValueError(
            f"private=True, but {repo_id} exists and is public; nothing was uploaded. Make it private in its "
            "settings on the Hub, choose another repo_id, or leave private out."
        )


@contextmanager
def keeping(
    folder: Path, repo_id: str, private: bool | None, revision: str | None, *options: str
) -> Iterator[None]:
    """Adds a note to any error: where the files are, and how to push them again."""
    try:
        yield
    except BaseException as error:
        raised = error
        if isinstance(error, httpx.HTTPError) and not isinstance(error, HfHubHTTPError):
            raised = ConnectionError(f"The connection to the Hub broke: {error}")
        elif isinstance(error, HfHubHTTPError) and error.response.status_code in NOT_ALLOWED:
            raised.add_note(
                f"There is no token, or it may not write to {repo_id}. Create one with permission to write "
                "at https://huggingface.co/settings/tokens, and log in with it: hf auth login"
            )
        if (folder / "config.json").is_file():
            command = ["hf", "upload", repo_id, str(folder), *options]
            command += ["--private"] if private else []
            command += ["--revision", revision] if revision else []
            command += [word for pattern in REPLACED for word in ("--delete", pattern)]
            raised.add_note(
                f"Nothing is lost: the model is in {folder}. To push it again: {shlex.join(command)}"
            )
        if raised is error:
            raise
        raise raised from error
