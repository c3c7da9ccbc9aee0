"""`device_map="auto"`: parts on the CPU, parts in a file."""

import re

import pytest
import torch
from accelerate import disk_offload

from tests.helpers.models import SELECTIONS, tiny_config
from vit_hf import POSITION_ENCODINGS, AdaptiveViTForImageClassification


def cases():
    """Selectors and reducers with most of the model in memory, and encodings with even the embeddings
    torn apart."""
    for name, fields in SELECTIONS.items():
        yield pytest.param(fields, 0.85, id=name)
    for name in POSITION_ENCODINGS:
        yield pytest.param({"patch_selector": "variance", "position_encoding": name}, 0.4, id=name)


@pytest.mark.parametrize(("fields", "share"), list(cases()))
def test_what_does_not_fit_waits_on_the_disk(fields, share, tmp_path):
    model = AdaptiveViTForImageClassification(tiny_config(**fields)).eval()
    model.save_pretrained(tmp_path / "model")
    split = AdaptiveViTForImageClassification.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": int(share * model.get_memory_footprint())},
        offload_folder=tmp_path / "offload",
    )
    assert set(split.hf_device_map.values()) == {"cpu", "disk"}
    assert any("layers.2" in name for name, value in split.named_parameters() if value.is_meta)
    blocks = [name for name in split.hf_device_map if "layers" in name]
    assert all(re.fullmatch(r"vit\.layers(\.\d)?", name) for name in blocks), "a block is torn apart"
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        assert torch.equal(split(images).logits, model(images).logits)


@pytest.mark.parametrize("encoding", POSITION_ENCODINGS)
def test_all_of_it_on_the_disk(encoding, tmp_path):
    """What encodings hold is there when blocks ask for it."""
    config = tiny_config(patch_selector="attention", position_encoding=encoding)
    model = AdaptiveViTForImageClassification(config).eval()
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        expected = model(images).logits
        disk_offload(model, tmp_path)
        assert all(value.is_meta for value in model.parameters())
        assert torch.equal(model(images).logits, expected)


def test_all_of_it_fits(tmp_path):
    model = AdaptiveViTForImageClassification(tiny_config(patch_selector="attention")).eval()
    model.save_pretrained(tmp_path)
    whole = AdaptiveViTForImageClassification.from_pretrained(tmp_path, device_map="auto")
    images = torch.randn(2, 3, 64, 48)
    assert torch.equal(whole(images).logits, model(images).logits)
