"""Two processes on CPUs: DDP and FSDP2 compute what one process computes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.launching import launch
from tests.helpers.models import SELECTIONS
from tests.integrations.distributed_worker import draws, train


@pytest.mark.slow
def test_ddp_has_the_gradients_of_one_process(tmp_path):
    launch("compare_gradients", tmp_path)
    results = json.loads((tmp_path / "gradients.json").read_text())
    assert results.keys() == SELECTIONS.keys()
    for name, result in results.items():
        assert result["between processes"] == 0, name
        if not draws(SELECTIONS[name]):
            assert result["apart"] < 1e-5, name


@pytest.mark.slow
def test_fsdp2_takes_the_step_of_one_process(tmp_path):
    launch("compare_sharded", tmp_path)
    results = json.loads((tmp_path / "sharded.json").read_text())
    assert len(results) > 40
    for name, result in results.items():
        assert result["apart"] < 1e-5, name
        assert result["share held"] < 0.55, name
        assert result["blocks sharded"] == 3, name


@pytest.mark.slow
def test_resumes_with_another_number_of_processes(tmp_path):
    """One process with batches of four, or two with batches of two: the same weights, changed over on the
    way or not."""
    train(tmp_path / "one", "4")
    launch("train", tmp_path / "two", "2")
    train(tmp_path / "two then one", "4", str(tmp_path / "two" / "checkpoint-3"))
    launch("train", tmp_path / "one then two", "2", tmp_path / "one" / "checkpoint-3")
    expected = load_file(tmp_path / "one" / "model" / "model.safetensors")
    early = load_file(tmp_path / "one" / "checkpoint-3" / "model.safetensors")
    assert max((expected[name] - early[name]).abs().max() for name in expected) > 1e-2
    for name in ("two", "two then one", "one then two"):
        found = load_file(tmp_path / name / "model" / "model.safetensors")
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-4, msg=f"{name}: {key}")
