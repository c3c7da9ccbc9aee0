"""The Python of README.md and CONTRIBUTING.md runs, on small models and images under the names that it
uses."""

import re
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    Trainer,
    TrainingArguments,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEVideoProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import vit_hf
from vit_hf import (
    POSITION_ENCODINGS,
    AdaptiveViTConfig,
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
    AdaptiveViTModel,
)
from vit_hf.data.measurement_images import write_tiff
from vit_hf.model import positions


ROOT = Path(__file__).parents[1]
# Twelve blocks, as reducers and backbones there are given the numbers of a ViT-B.
SMALL = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 12}
SMALL |= {"image_size": 96, "num_labels": 3}
# Another test sends these to a server.
TESTED_APART = "## Share it"


def python_of(name: str) -> list[str]:
    text = (ROOT / name).read_text()
    before, heading, rest = text.partition(TESTED_APART)
    rest = rest.partition("\n## ")[2] if heading else ""
    return re.findall(r"^```python\n(.*?)^```", before + rest, re.DOTALL | re.MULTILINE)


def is_slow(code: str) -> bool:
    return "OnnxExporter" in code


BLOCKS = python_of("README.md")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One that transformers could have written."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SMALL)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 96, "width": 96}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def swin_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swin")
    config = SwinConfig(embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4, image_size=96)
    SwinForImageClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def video_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videomae")
    fields = {name: value for name, value in SMALL.items() if name != "num_hidden_layers"}
    VideoMAEForVideoClassification(VideoMAEConfig(**fields, num_hidden_layers=2)).save_pretrained(folder)
    VideoMAEVideoProcessor(size={"height": 96, "width": 96}, do_center_crop=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def names(checkpoint, tmp_path, monkeypatch):
    """What stands before a piece of code in a reader's mind, in a folder with the files that it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    noise = np.random.default_rng(0)
    for name, side in {"large.jpg": 512, "small.png": 64, "scan.png": 300}.items():
        PIL.Image.fromarray(noise.integers(0, 255, (side, side, 3), np.uint8)).save(name)
    for name in ("slide.tif", "other.tif"):
        write_tiff(Path(name), 512)
    fields = {"patch_selector": "variance", "num_selected_patches": 20}
    model = AdaptiveViTForImageClassification.from_pretrained(checkpoint, **fields)
    processor = AdaptiveViTImageProcessor.from_pretrained(checkpoint, do_resize=False)
    for saved in (model, processor):
        saved.save_pretrained("runs/photos")
    images = [PIL.Image.open("large.jpg")] * 2
    return {
        **{name: getattr(vit_hf, name) for name in vit_hf.__all__},
        "torch": torch,
        "Image": PIL.Image,
        "Trainer": Trainer,
        "args": TrainingArguments("runs/trainer", remove_unused_columns=False, dataloader_pin_memory=False),
        "model": model,
        "processor": processor,
        "name": checkpoint,
        "pixel_values": torch.randn(2, 3, 96, 96),
        "video": torch.randint(0, 256, (16, 3, 120, 140), dtype=torch.uint8),
        "labels": torch.tensor([0, 1]),
        "rows": [{"image": "slide.tif", "label": 1}],
        "dataset": Dataset.from_dict({"image": images, "label": [0, 1]}),
    }


@pytest.mark.parametrize(
    "number",
    [pytest.param(i, marks=[pytest.mark.slow] * is_slow(code)) for i, code in enumerate(BLOCKS)],
)
def test_readme(number, names, checkpoint, swin_checkpoint, video_checkpoint):
    code = re.sub(r'"google/vit-[^"]*"', repr(checkpoint), BLOCKS[number])
    code = re.sub(r'"microsoft/swin-[^"]*"', repr(swin_checkpoint), code)
    code = re.sub(r'"MCG-NJU/[^"]*"', repr(video_checkpoint), code)
    code = code.replace("1024, 1024", "96, 96")
    # Small images have fewer patches.
    code = re.sub(r"\b(392|196|98)\b", "20", code)
    code = code.replace("num_selected_patches=1000", "num_selected_patches=100")
    if file := re.match(r"# (my_\w+\.py)\n", code):
        Path(file[1]).write_text(code)
    exec(compile(code, f"README.md, piece {number}", "exec"), names)
    if file:
        AdaptiveViTModel(AdaptiveViTConfig(**SMALL, position_encoding="my_positions.Rings"))(
            names["pixel_values"]
        )
    if "trainer" in names:
        names["trainer"].train()


def test_contributing(monkeypatch):
    (code,) = python_of("CONTRIBUTING.md")
    names = dict(vars(positions))  # where it says that this goes
    exec(compile(code.replace("{...,", "{**POSITION_ENCODINGS,"), "CONTRIBUTING.md", "exec"), names)
    (new,) = names["POSITION_ENCODINGS"].keys() - POSITION_ENCODINGS.keys()
    monkeypatch.setitem(POSITION_ENCODINGS, new, names["POSITION_ENCODINGS"][new])
    pixels = torch.randn(2, 3, 96, 96)
    fields = SMALL | {"initializer_range": 0.2, "patch_selector": "variance", "num_selected_patches": 20}
    model = AdaptiveViTModel(AdaptiveViTConfig(**fields, position_encoding=new)).eval()
    nowhere = AdaptiveViTModel(AdaptiveViTConfig(**fields, position_encoding="none")).eval()
    nowhere.load_state_dict(model.state_dict())
    difference = model(pixels).last_hidden_state - nowhere(pixels).last_hidden_state
    assert difference.abs().max() > 0.01
