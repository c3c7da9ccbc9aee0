"""Nothing in a file of weights runs."""

import pickle
from pathlib import Path

import pytest
import torch

from tests.helpers.models import stock, tiny_config
from vit_hf import AdaptiveViTForImageClassification


class Poison:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(params=["ours", "stock"])
def folder(request, tmp_path):
    """A checkpoint whose weights are a pickle."""
    model = AdaptiveViTForImageClassification(tiny_config()) if request.param == "ours" else stock()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    return tmp_path


@pytest.fixture
def poisoned(folder):
    torch.save({"weight": Poison(folder / "ran")}, folder / "pytorch_model.bin")
    # The poison works.
    pickle.loads(pickle.dumps(Poison(folder / "made")))
    assert (folder / "made").exists()
    return folder


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({}, OSError, "has no weights in model.safetensors"),
        ({"use_safetensors": False}, pickle.UnpicklingError, "Weights only load failed"),
        ({"weights_only": False}, ValueError, "weights_only=False would run code"),
        ({"weights_only": False, "use_safetensors": False}, ValueError, "weights_only=False would run code"),
    ],
)
def test_poison_does_not_run(poisoned, options, error, message):
    with pytest.raises(error, match=message):
        AdaptiveViTForImageClassification.from_pretrained(poisoned, **options)
    assert not (poisoned / "ran").exists()


def test_pickles_of_tensors_are_read_when_asked_for(folder):
    model, info = AdaptiveViTForImageClassification.from_pretrained(
        folder, use_safetensors=False, output_loading_info=True
    )
    assert not any(info.values())
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert torch.equal(model.classifier.weight, weights["classifier.weight"])


def test_sharded_pickles_are_refused_too(folder):
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(OSError, match=r"has no weights in model\.safetensors.*vit-hf convert reads"):
        AdaptiveViTForImageClassification.from_pretrained(folder)
