"""What is decided before anything is uploaded, without a Hub."""

from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerState

import vit_hf
from tests.helpers.hub_client import make
from vit_hf.app.space import push_space
from vit_hf.hub import push
from vit_hf.training.hub_trainer import measured
from vit_hf.training.output_dir import RUN_ARGUMENTS_NAME, set_incomplete_aside


@pytest.fixture
def api(monkeypatch, tmp_path):
    """A Hub whose repositories are there, and public; `calls` are what it was asked for beside that."""

    class Api:
        calls: list[str] = []

        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **options):
            return SimpleNamespace(repo_id=repo_id)

        def repo_info(self, repo_id, repo_type):
            return SimpleNamespace(private=False)

        def create_branch(self, *args, **options):
            self.calls.append("branch")

        def upload_folder(self, **options):
            self.calls.append("upload")
            raise OSError("the line is down")

    monkeypatch.setattr(push, "HfApi", Api)
    monkeypatch.setattr("vit_hf.app.space.HfApi", Api)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Api


def test_private_does_not_end_in_a_public_repository(api, tmp_path):
    with pytest.raises(ValueError, match="me/there exists and is public; nothing was uploaded"):
        vit_hf.push_to_hub(*make(), "me/there", private=True)
    with pytest.raises(ValueError, match="me/there exists and is public; nothing was uploaded"):
        push_space(tmp_path, "me/there", private=True)
    assert api.calls == []


@pytest.mark.parametrize("options", [{"create_pr": True}, {"revision": "refs/pr/3"}])
def test_pull_request(api, options):
    """The command that pushes again opens one, too; and a commit to one that is there makes no branch."""
    with pytest.raises(OSError, match="the line is down") as raised:
        vit_hf.push_to_hub(*make(), "me/there", **options)
    note = raised.value.__notes__[-1]
    assert ("--create-pr" in note) == ("create_pr" in options)
    assert ("--revision refs/pr/3" in note) == ("revision" in options)
    assert api.calls == ["upload"]


def test_a_model_has_no_metrics_of_an_earlier_step():
    history = [
        {"eval_accuracy": 0.9, "step": 4},
        {"eval_accuracy": 0.8, "step": 8},
        {"train_runtime": 1.0, "step": 10},
    ]
    state = TrainerState(log_history=history, global_step=10, best_global_step=4)
    assert measured(state, is_best=True) == {"eval_accuracy": 0.9}
    assert measured(state, is_best=False) == {}
    state.log_history = [*history, {"eval_accuracy": 0.7, "step": 10}]
    assert measured(state, is_best=False) == {"eval_accuracy": 0.7}


def test_trainer_does_not_upload_paths_and_halves(tmp_path):
    """What Trainer leaves out are names that begin with an underscore."""
    (tmp_path / "checkpoint-9").mkdir()
    set_incomplete_aside(tmp_path, tmp_path / "checkpoint-3")
    [folder] = tmp_path.iterdir()
    assert folder.name.endswith("incomplete-checkpoint-9")
    for name in (folder.name, RUN_ARGUMENTS_NAME):
        assert fnmatch(name, "_*")


@pytest.mark.parametrize("start", ["", "."])
def test_pictures_from_elsewhere_are_copied_to_the_card(tmp_path, monkeypatch, start):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "curves.png").write_bytes(b"curves")
    (tmp_path / "card").mkdir()
    file = Path("run", "curves.png")
    pictures = {"Learning curves": str(file if start else tmp_path / file)}
    card = push.write_card(*make(), tmp_path / "card", repo_id="me/m", license="mit", pictures=pictures)
    assert "![Learning curves](curves.png)" in card.text
    assert (tmp_path / "card" / "curves.png").read_bytes() == b"curves"
