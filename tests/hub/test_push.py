"""Pushing and loading over HTTP, with the real client, against a Hub on this machine."""

import json
import multiprocessing
import os
import re
import site
import subprocess
import venv
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from tests.helpers import hub_client
from tests.helpers.hub_server import Repo, running_hub
from vit_hf.training.output_dir import RUN_ARGUMENTS_NAME


TOKEN = "hf_aSecretThatNobodyMaySee0123456789"
READER = "hf_readOnly0123456789"


def same(result):
    """Logits as equal as sums in another order are."""
    return pytest.approx(result["logits"], abs=1e-5)


@pytest.fixture(scope="module")
def hub():
    with running_hub() as hub:
        hub.tokens |= {TOKEN: "write", READER: "read"}
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """Calls functions of `hub_client` in a process for which this Hub is the only one."""
    home = tmp_path_factory.mktemp("home")
    environment = hub_client.environment(hub.url, home) | {"HF_TOKEN": TOKEN}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pool.submit(os.getpid).result()  # starts the process, with this environment
    with pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


def test_what_is_pushed(hub, client):
    hub.repos |= {"google/base": Repo(), "someone/birds": Repo()}
    hub.repos["google/base"].files["README.md"] = b"---\nlicense: mit\n---\n"
    pushed = client(
        hub_client.push,
        "me/complete",
        examples=2,
        fields={"patch_selector": "variance", "num_selected_patches": 6},
        base_model="google/base",
        dataset="someone/birds",
        metrics={"eval_accuracy": 0.75, "eval_loss": 0.5, "eval_runtime": 3.0, "test_accuracy": 0.7},
        training_arguments={"learning_rate": 3e-4, "seed": 7, "hub_token": TOKEN, "output_dir": "/home/x"},
        limitations="Only birds.",
    )
    repo = hub.repos["me/complete"]
    files = repo.files
    assert pushed["oid"] == repo.refs["main"] and not repo.private
    config = json.loads(files["config.json"])
    backends = {
        "torchvision": "image_processing_adaptive_vit.AdaptiveViTImageProcessor",
        "pil": "image_processing_adaptive_vit.AdaptiveViTImageProcessorPil",
    }
    assert config["auto_map"]["AutoImageProcessor"] == backends
    names = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoModelForMaskedImageModeling")
    for name in (*names, "AutoModelForPreTraining", "AutoModelForSemanticSegmentation", "AutoBackbone"):
        assert f"{config['auto_map'][name].partition('.')[0]}.py" in files
    for reference in backends.values():
        assert f"{reference.partition('.')[0]}.py" in files
    assert json.loads(files["preprocessor_config.json"])["auto_map"]["AutoImageProcessor"] == backends
    assert {name for name in files if name.endswith(".py")} == {
        "modeling_adaptive_vit.py",
        "image_processing_adaptive_vit.py",
    }
    assert "model.safetensors" in files and not [name for name in files if name.endswith(".bin")]

    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.base_model, card.data.datasets) == (
        "mit",
        "google/base",
        ["someone/birds"],
    )
    measured = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert measured == {("validation", "accuracy"): 0.75, ("test", "accuracy"): 0.7}
    for words in ("`variance` keeps 6 patches, by the model", "| `learning_rate` | 0.0003 |", "Only birds."):
        assert words in card.text
    assert TOKEN not in str(card) and "/home/x" not in str(card)
    pictures = [name for name in files if name.startswith("examples/")]
    assert len(pictures) == 2 and all(f"]({name})" in card.text for name in pictures)
    assert "POST /api/validate-yaml" in hub.requests


def test_swin(hub, client):
    fields = {"patch_selector": "variance", "num_selected_windows": 2}
    pushed = client(hub_client.push, "me/swin", examples=1, fields=fields, license="mit")
    files = hub.repos["me/swin"].files
    auto_map = json.loads(files["config.json"])["auto_map"]
    assert auto_map["AutoModelForImageClassification"].startswith("modeling_adaptive_swin.")
    assert (
        "modeling_adaptive_swin.py" in files
        and b"class AdaptiveSwinStage" in files["modeling_adaptive_swin.py"]
    )
    assert "keeps 2 windows of the first stage" in files["README.md"].decode()
    assert [name for name in files if name.startswith("examples/")] == ["examples/image_0_overview.png"]
    assert client(hub_client.load, "me/swin")["logits"] == same(pushed)


def test_private_repository(hub, client):
    client(hub_client.push, "me/private", private=True)
    assert hub.repos["me/private"].private
    loaded = client(hub_client.load, "me/private")
    assert client(hub_client.load, "me/private", token=READER)["logits"] == same(loaded)
    stranger = client(hub_client.load, "me/private", token=False)
    assert "me/private" in stranger["error"] and "token" in stranger["error"]


def test_pushing_again_makes_a_commit_and_the_old_one_stays(hub, client):
    first = client(hub_client.push, "me/again", seed=1)
    before = len(hub.stored)
    second = client(hub_client.push, "me/again", seed=2)
    assert len(hub.repos["me/again"].commits) == 3 and len(hub.stored) == before + 1
    now = client(hub_client.load, "me/again")
    assert now["logits"] == same(second) and now["logits"] != same(first)
    assert client(hub_client.load, "me/again", revision=first["oid"])["logits"] == same(first)


@pytest.mark.parametrize("sizes", [("5GB", "100KB"), ("100KB", "5GB")])
def test_shards_do_not_mix_with_those_of_an_earlier_push(hub, client, sizes):
    name = f"me/shards-{sizes[0]}"
    for seed, size in enumerate(sizes):
        pushed = client(hub_client.push, name, seed=seed, max_shard_size=size)
    weights = [file for file in hub.repos[name].files if file.endswith(".safetensors")]
    assert (len(weights) > 1) == (size == "100KB")
    assert ("model.safetensors.index.json" in hub.repos[name].files) == (size == "100KB")
    assert client(hub_client.load, name)["logits"] == same(pushed)


def test_branch(hub, client):
    client(hub_client.push, "me/branches", seed=1)
    draft = client(hub_client.push, "me/branches", seed=2, revision="draft")
    assert client(hub_client.load, "me/branches", revision="draft")["logits"] == same(draft)
    assert client(hub_client.load, "me/branches")["logits"] != same(draft)


def test_interrupted_upload_is_tried_again(hub, client):
    hub.failures |= {"PUT /stored/": 1, "objects/batch": 1}
    pushed = client(hub_client.push, "me/interrupted", seed=11)
    assert set(hub.failures.values()) == {0}
    assert client(hub_client.load, "me/interrupted")["logits"] == same(pushed)


def test_what_failed_is_kept_and_can_be_pushed_with_the_command_it_names(hub, client):
    pushed = client(hub_client.push, "me/kept", token="hf_wrong", seed=3, private=True)
    assert pushed["type"] == "HfHubHTTPError" and "401" in pushed["error"]
    assert "hf auth login" in pushed["notes"] and "Nothing is lost" in pushed["notes"]
    assert "me/kept" not in hub.repos
    reader = client(hub_client.push, "me/kept", token=READER, seed=3)
    assert "403" in reader["error"] and "may not write to me/kept" in reader["notes"]
    command = pushed["notes"].rpartition("push it again: ")[2]
    client(hub_client.run_command, command)
    assert hub.repos["me/kept"].private
    assert client(hub_client.load, "me/kept")["logits"] == same(
        {"logits": client(hub_client.logits_of, seed=3)}
    )


def test_hub_that_does_not_answer(hub, client):
    hub.failures[""] = 100
    pushed = client(hub_client.push, "me/unreachable", base_model="google/base", license="mit")
    hub.failures[""] = 0
    assert pushed["type"] == "ConnectionError" and "connection to the Hub broke" in pushed["error"]
    [folder] = re.findall(r"the model is in (\S+)\. ", pushed["notes"])
    assert ModelCard.load(Path(folder, "README.md")).data.base_model == "google/base"


def test_card_that_the_hub_refuses(hub, client):
    pushed = client(hub_client.push, "me/refused", license="no such license")
    assert pushed["type"] == "ValueError" and '"license" must be one of' in pushed["error"]
    assert hub.repos["me/refused"].files == {}


def test_repository_that_is_not_there(client):
    loaded = client(hub_client.load, "me/absent")
    assert "me/absent" in loaded["error"]


def test_readme(hub, client, tmp_path):
    hub.repos.setdefault("google/base", Repo())
    section = Path(__file__).parents[2].joinpath("docs/guides/hub.md").read_text().partition("## Share it")[2]
    code = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert len(code) == 2
    assert client(hub_client.run_readme, code, tmp_path).startswith("LABEL_")
    card = ModelCard(hub.repos["me/photos"].files["README.md"].decode())
    assert card.data.base_model == "google/base" and "](examples/large_overview.png)" in card.text


class TestTrainer:
    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, hub, client, tmp_path_factory):
        """The folder of a run that pushed at each step and in the end, and the logits of its model."""
        folder = tmp_path_factory.mktemp("run")
        return folder, client(hub_client.train, "me/trained", folder, TOKEN, examples=1, save_steps=1)

    def test_pushes_the_same_repository(self, hub, client, run):
        assert client(hub_client.load, "me/trained")["logits"] == same(run[1])
        client(
            hub_client.push,
            "me/by-hand",
            examples=1,
            fields={"position_encoding": "rotary", "problem_type": "single_label_classification"},
            license="mit",
            dataset="birds",
            metrics={"eval_accuracy": 0.5},
        )
        trained, by_hand = hub.repos["me/trained"].files, hub.repos["me/by-hand"].files
        assert trained.keys() - by_hand.keys() == {"training_args.bin"} and by_hand.keys() <= trained.keys()
        for name in by_hand:
            if name.endswith(".py"):
                assert trained[name] == by_hand[name], name
            elif name.endswith(".json"):
                options = json.loads(trained[name])
                options.pop("use_cache", None)  # which Trainer sets
                assert options == json.loads(by_hand[name]), name
        cards = [ModelCard(files["README.md"].decode()) for files in (trained, by_hand)]
        for card in cards:
            [result] = card.data.eval_results
            assert (result.metric_type, result.metric_value, result.dataset_name) == (
                "accuracy",
                0.5,
                "birds",
            )
            assert card.data.license == "mit" and "](examples/image_0_overview.png)" in card.text
        assert "| `max_steps` | 2 |" in cards[0].text

    def test_every_push_loads(self, hub, run):
        """Those of checkpoints, too, with the code."""
        pushes = [files for files in hub.repos["me/trained"].commits.values() if "model.safetensors" in files]
        assert len(pushes) > 1
        assert all("modeling_adaptive_vit.py" in files for files in pushes)

    def test_token_is_nowhere(self, hub, run):
        written = {path.name: path.read_bytes() for path in run[0].rglob("*") if path.is_file()}
        assert "training_args.bin" in written and "trainer_state.json" in written
        for content in [*hub.repos["me/trained"].files.values(), *written.values()]:
            assert TOKEN.encode() not in content

    def test_what_failed_can_be_pushed_with_the_command_it_names(self, hub, client, tmp_path):
        hub.failures["commit/main"] = 100
        failed = client(hub_client.train, "me/lost", tmp_path / "run", TOKEN, save_strategy="no")
        hub.failures["commit/main"] = 0
        assert "connection to the Hub broke" in failed["error"] and "Nothing is lost" in failed["notes"]
        client(hub_client.run_command, failed["notes"].rpartition("push it again: ")[2])
        assert "logits" in client(hub_client.load, "me/lost")


CLEAN = """
import sys
from PIL import Image
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
    AutoModelForMaskedImageModeling, AutoModelForPreTraining, AutoModelForSemanticSegmentation, pipeline,
)

try:
    import vit_hf
except ModuleNotFoundError:
    pass
else:
    sys.exit(f"this environment has {vit_hf.__file__}")

name, first = sys.argv[1:]
image = Image.open("image.png")
trusted = {"trust_remote_code": True}
inputs = AutoImageProcessor.from_pretrained(name, **trusted)(image, return_tensors="pt")
for backend in ("torchvision", "pil"):
    image_processor = AutoImageProcessor.from_pretrained(name, backend=backend, **trusted)
    assert image_processor.backend == backend, image_processor
model = AutoModelForImageClassification.from_pretrained(name, **trusted)
assert type(model).__module__.startswith("transformers_modules.")
assert AutoConfig.from_pretrained(name, **trusted).patch_selector == "my_selectors.Brightest"
AutoModel.from_pretrained(name, **trusted)(**inputs)
AutoBackbone.from_pretrained(name, **trusted)(**inputs)
dense = {"patch_selector": None, "num_selected_patches": None}
AutoModelForMaskedImageModeling.from_pretrained(name, **dense, **trusted)(**inputs)
AutoModelForPreTraining.from_pretrained(name, **dense, **trusted)(**inputs)
AutoModelForSemanticSegmentation.from_pretrained(name, **trusted)(**inputs)
[best, *_] = pipeline("image-classification", model=name, **trusted)(image)
pinned = AutoModelForImageClassification.from_pretrained(name, revision=first, **trusted)
print("answers", model(**inputs).logits[0].tolist(), pinned(**inputs).logits[0].tolist(), best["label"])
"""

SELECTOR = """
from vit_hf import PatchSelector


class Brightest(PatchSelector):
    def score(self, patches, num_selected, probe):
        return patches.pixels.mean(dim=(-3, -2, -1)).flatten(1)
"""


@pytest.mark.slow
@pytest.mark.xdist_group("hub")
class TestWhereThePackageIsNotInstalled:
    @pytest.fixture(scope="class")
    @classmethod
    def python(cls, tmp_path_factory):
        """An interpreter of a virtual environment with all packages of this one but vit_hf."""
        folder = tmp_path_factory.mktemp("clean")
        venv.create(folder, with_pip=False)
        [packages] = folder.glob("lib/*/site-packages")
        # Folders in a .pth file are searched, and their own .pth files, such as of editable installs, are
        # not.
        (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
        return folder / "bin" / "python"

    @pytest.fixture
    def run(self, hub, python, tmp_path):
        def run(*words):
            environment = os.environ | hub_client.environment(hub.url, tmp_path / "home")
            environment = {**environment, "HF_TOKEN": READER, "PYTHONPATH": ""}
            hub_client.picture().save(tmp_path / "image.png")
            result = subprocess.run(
                [python, *words], capture_output=True, text=True, cwd=tmp_path, env=environment
            )
            assert result.returncode == 0, result.stderr
            return result.stdout

        return run

    def test_everything_loads_with_a_class_of_the_user(self, client, run, tmp_path):
        (tmp_path / "my_selectors.py").write_text(SELECTOR)
        fields = {"patch_selector": "my_selectors.Brightest"}
        pushes = [
            client(
                hub_client.push, "me/clean", seed=seed, fields=fields, path=tmp_path, max_shard_size="100KB"
            )
            for seed in (1, 2)
        ]
        (tmp_path / "my_selectors.py").unlink()
        out = run("-c", CLEAN, "me/clean", pushes[0]["oid"]).rpartition("answers ")[2]
        now, before, label = re.fullmatch(r"(\[.*\]) (\[.*\]) (\w+)\s*", out).groups()
        assert json.loads(now) == same(pushes[1]) and json.loads(before) == same(pushes[0])
        assert label == f"LABEL_{np.argmax(pushes[1]['logits'])}"

    def test_the_example_of_the_card_runs(self, hub, client, run):
        pushed = client(hub_client.push, "me/example", fields={"patch_selector": "attention"})
        card = ModelCard(hub.repos["me/example"].files["README.md"].decode())
        [example] = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
        out = run("-c", example)
        assert f"LABEL_{np.argmax(pushed['logits'])}" in out and "tensor(" in out


class TestScript:
    @pytest.fixture
    def folder(self, client, tmp_path):
        """As finetune.py leaves it."""
        client(hub_client.save, tmp_path)
        arguments = {
            "model_name_or_path": "google/base",
            "dataset": "/home/somebody/photos",
            "learning_rate": 0.001,
            "hub_token": TOKEN,
        }
        (tmp_path / RUN_ARGUMENTS_NAME).write_text(json.dumps(arguments))
        (tmp_path / "eval_results.json").write_text(json.dumps({"eval_accuracy": 0.9, "epoch": 1.0}))
        return tmp_path

    @pytest.mark.slow
    @pytest.mark.xdist_group("hub")
    def test_card_tells_of_the_run(self, hub, client, folder):
        hub.repos.setdefault("google/base", Repo())
        result = client(hub_client.run_script, folder, "me/script", "--license", "mit", "--private")
        assert result["code"] == 0 and f"Pushed: {hub.url}/me/script/commit/" in result["out"]
        repo = hub.repos["me/script"]
        card = ModelCard(repo.files["README.md"].decode())
        assert repo.private and RUN_ARGUMENTS_NAME not in repo.files
        assert (card.data.base_model, card.data.eval_results[0].metric_value) == ("google/base", 0.9)
        assert (
            card.data.eval_results[0].dataset_name == "photos" and "| `learning_rate` | 0.001 |" in card.text
        )
        for text in (result["out"], *(content.decode("latin-1") for content in repo.files.values())):
            assert TOKEN not in text and "/home/somebody" not in text

    @pytest.mark.slow
    @pytest.mark.xdist_group("hub")
    def test_wrong_token(self, hub, client, folder):
        result = client(hub_client.run_script, folder, "me/unwritten", token="hf_wrong")
        assert result["code"] == 1 and "Traceback" not in result["out"] and "hf_wrong" not in result["out"]
        # Before the model is loaded and its files are written.
        for words in ("does not accept the token (401)", "hf auth login"):
            assert words in result["out"]
        assert "loading" not in result["out"].partition("does not accept")[0]
        assert "me/unwritten" not in hub.repos
