"""Image processors on disk, in worker processes, and where this package or torchvision is missing."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor

import vit_hf  # noqa: F401, registers the processors
from vit_hf.model.image_processing_adaptive_vit import AdaptiveViTImageProcessor, AdaptiveViTImageProcessorPil


BACKENDS = {"torchvision": AdaptiveViTImageProcessor, "pil": AdaptiveViTImageProcessorPil}


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS)
def ours(request):
    return request.param


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (130, 100, 3), dtype=np.uint8)


OPTIONS = {
    "size": {"longest_edge": 96},
    "patch_size": [8, 16],
    "return_patches": True,
    "patch_selector": {"type": "random", "seed": 4},
    "num_selected_patches": 12,
}


def test_save_and_load(ours, tmp_path):
    processor = ours(**OPTIONS)
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {key: written[key] for key in OPTIONS} == OPTIONS
    assert written["auto_map"] == {
        "AutoImageProcessor": {
            "torchvision": "image_processing_adaptive_vit.AdaptiveViTImageProcessor",
            "pil": "image_processing_adaptive_vit.AdaptiveViTImageProcessorPil",
        }
    }
    assert {path.name for path in tmp_path.glob("*.py")} == {"image_processing_adaptive_vit.py"}
    loaded = ours.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert ours.from_pretrained(tmp_path, num_selected_patches=5).num_selected_patches == 5
    for key, value in processor(picture(), return_tensors="pt").items():
        assert torch.equal(value, loaded(picture(), return_tensors="pt")[key])


@pytest.mark.parametrize("backend", BACKENDS)
def test_installed_class_loads_without_trust(ours, backend, tmp_path):
    ours(**OPTIONS).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is BACKENDS[backend]
    assert loaded.patch_selector == OPTIONS["patch_selector"]


class Preparing(torch.utils.data.Dataset):
    def __init__(self, processor):
        self.processor = processor

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {
            key: value[0] for key, value in self.processor(picture(seed=index), return_tensors="pt").items()
        }


def test_runs_in_workers(ours):
    processor = pickle.loads(pickle.dumps(ours(**OPTIONS)))
    batch = next(iter(torch.utils.data.DataLoader(Preparing(processor), batch_size=3, num_workers=1)))
    expected = processor([picture(seed=seed) for seed in range(3)], return_tensors="pt")
    assert all(torch.equal(batch[key], expected[key]) for key in expected)


def python(code, folder):
    """Runs code in a fresh process, away from this checkout, with `folder` as argument and modules cache."""
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(folder)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]


WITHOUT_PACKAGE = """
import sys
sys.modules["vit_hf"] = None
import numpy as np
from transformers import AutoImageProcessor
folder = sys.argv[1]
image = np.load(f"{folder}/image.npy")
for saved in ("torchvision", "pil"):
    for backend in ("torchvision", "pil"):
        processor = AutoImageProcessor.from_pretrained(f"{folder}/{saved}", trust_remote_code=True, backend=backend)
        assert processor.backend == backend and processor.__module__.startswith("transformers_modules.")
        np.save(f"{folder}/{saved}_{backend}.npy", processor(image, return_tensors="np")["pixel_values"])
# What was loaded ships both backends again.
processor.save_pretrained(f"{folder}/again")
again = AutoImageProcessor.from_pretrained(f"{folder}/again", trust_remote_code=True, backend="torchvision")
assert again.backend == "torchvision" and again.to_dict()["auto_map"] == processor.to_dict()["auto_map"]
name = "image_processing_adaptive_vit.py"
with open(f"{folder}/again/{name}", "rb") as again, open(f"{folder}/pil/{name}", "rb") as first:
    assert again.read() == first.read()
"""  # noqa: E501

WITHOUT_TORCHVISION = """
import sys
sys.modules["torchvision"] = None
import numpy as np
# Under this name it works without torchvision in older releases, too.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from vit_hf.model.image_processing_adaptive_vit import AdaptiveViTImageProcessor
try:
    AdaptiveViTImageProcessor()
except ImportError as error:
    assert "orchvision" in str(error)
else:
    raise AssertionError("works without torchvision")
folder = sys.argv[1]
processor = AutoImageProcessor.from_pretrained(f"{folder}/torchvision", trust_remote_code=True)
assert type(processor).__name__ == "AdaptiveViTImageProcessorPil"
np.save(f"{folder}/pil.npy", processor(np.load(f"{folder}/image.npy"), return_tensors="np")["pixel_values"])
"""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A folder with a checkpoint from each backend, an image, and what each makes of it."""
    folder = tmp_path_factory.mktemp("shipped")
    image = picture()
    np.save(folder / "image.npy", image)
    expected = {}
    for backend, ours in BACKENDS.items():
        processor = ours(**OPTIONS)
        processor.save_pretrained(folder / backend)
        expected[backend] = processor(image, return_tensors="np")["pixel_values"]
    return folder, expected


def test_checkpoint_brings_its_code(shipped):
    folder, expected = shipped
    python(WITHOUT_PACKAGE, folder)
    for saved_by in BACKENDS:
        for backend in BACKENDS:
            assert np.array_equal(np.load(folder / f"{saved_by}_{backend}.npy"), expected[backend])


def test_without_torchvision(shipped):
    folder, expected = shipped
    python(WITHOUT_TORCHVISION, folder)
    assert np.array_equal(np.load(folder / "pil.npy"), expected["pil"])
