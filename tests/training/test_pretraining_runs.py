"""Pretraining runs: without labels, resumed, and what becomes of the encoder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

from tests.helpers.runs import MODEL, write_images
from vit_hf.arguments import ArchitectureArguments, AugmentationArguments, DataArguments, PretrainingArguments
from vit_hf.training.arguments import RunArguments
from vit_hf.training.pretraining import Pretraining
from vit_hf.training.task import prepare


DECODER = {
    "masked_autoencoder": {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
    },
    "patch_size": 8,
}
GROUPS = (ArchitectureArguments, DataArguments, AugmentationArguments, PretrainingArguments, RunArguments)


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory):
    """A folder of ten images, in no classes."""
    folder = tmp_path_factory.mktemp("unlabelled")
    write_images(folder, 10)
    return folder


@pytest.fixture
def make_pretraining(unlabelled, tmp_path):
    """A function of `output_dir` and arguments (flat, as on the command line) to a prepared run."""

    def make(output_dir="pretrained", **arguments):
        values = {
            "config_overrides": MODEL | DECODER,
            "image_size": 32,
            "dataset": str(unlabelled),
            "validation_fraction": 0.3,
            "output_dir": str(tmp_path / output_dir),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "disable_tqdm": True,
            "use_cpu": True,
            **arguments,
        }
        groups = []
        for group in GROUPS:
            names = group.__dataclass_fields__.keys() & values.keys()
            groups.append(group(**{name: values.pop(name) for name in names}))
        assert not values
        *arguments, training = groups
        return prepare(Pretraining(*arguments), training)

    return make


@pytest.mark.filterwarnings("ignore:.*newly initialized")
def test_pretrains_then_finetunes(make_pretraining, make_run):
    run = make_pretraining(position_encoding="rotary", horizontal_flip=0.5)
    assert "7 train, 3 validation images, without labels" in run.describe()
    metrics = run.execute()
    folder = Path(run.trainer.args.output_dir)
    assert metrics["eval_loss"] > 0 and json.loads((folder / "eval_results.json").read_text())
    model = AutoModelForPreTraining.from_pretrained(folder)
    assert model.options.norm_pix_loss and model.options.mask_ratio == 0.75
    assert model.options.decoder_hidden_size == 16

    after = make_run(model_name_or_path=str(folder), config_overrides={}, position_encoding="rotary")
    classifier = after.trainer.model
    for name, value in model.vit.state_dict().items():
        assert torch.equal(value, classifier.vit.state_dict()[name])
    assert classifier.config.patch_selector == "variance"
    assert after.execute()["eval_accuracy"] >= 0


def test_a_run_that_was_interrupted_ends_with_the_same_weights(make_pretraining, tmp_path):
    make_pretraining("whole").execute()
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    checkpoints = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    first, last = checkpoints
    for name in ("model.safetensors", "eval_results.json"):
        (tmp_path / "whole" / name).unlink()
    shutil.rmtree(last)
    resumed = make_pretraining("whole")
    assert resumed.checkpoint == first and "resumes from" in resumed.describe()
    resumed.execute()
    for name, value in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_column": "label"}, "reads no labels"),
        ({"mixup_alpha": 0.2}, "does not mix"),
        ({"mask_ratio": 1.5}, r"mask_ratio=1.5"),
        ({"validation_fraction": 0.0}, "no validation split"),
        ({"config_overrides": {"decoder_size": 3}}, "no field decoder_size"),
    ],
)
def test_refuses_before_anything_is_written(make_pretraining, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pretraining(**arguments)
    assert not (tmp_path / "pretrained").exists()
