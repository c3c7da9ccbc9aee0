"""A search from arguments to checkpoints, on a few digits."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForImageClassification

from tests.helpers.scripts import command, read_flags
from vit_hf import AdaptiveViTForImageClassification
from vit_hf.arguments import (
    AugmentationArguments,
    DataArguments,
    FinetuningArguments,
    ModelArguments,
    SearchArguments,
)
from vit_hf.search import running as running_module
from vit_hf.search.running import prepare_search
from vit_hf.training.arguments import RunArguments
from vit_hf.training.model_loading import make_model


VALUES = {
    "dataset": "megapixel_digits",
    "dataset_options": {"task": "single", "size": 32, "num_noise": 0, "num_train": 60, "num_test": 20},
    "validation_fraction": 0.3,
    "image_size": 32,
    "position_encoding": "rotary",
    "patch_selector": "variance",
    "num_selected_patches": 1.0,
    "config_overrides": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "head_dim": 4,
        "intermediate_size": 32,
        "patch_size": 8,
        "num_channels": 1,
    },
    "elastic_hidden_sizes": [8, 12, 14, 16],
    "elastic_depths": [1, 2],
    "elastic_num_attention_heads": [1, 2, 3],
    "elastic_mlp_ratios": [1.0, 1.5, 2.0],
    "elastic_keep_rates": [0.5, 0.75, 1.0],
    "population": 4,
    "generations": 2,
    "num_parents": 2,
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 20,
    "eval_strategy": "no",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}
GROUPS = (
    ModelArguments,
    DataArguments,
    AugmentationArguments,
    FinetuningArguments,
    SearchArguments,
    RunArguments,
)


def prepare(folder, **changes):
    values = {**VALUES, "output_dir": str(folder), **changes}
    groups = []
    for group in GROUPS:
        names = group.__dataclass_fields__.keys() & values.keys()
        groups.append(group(**{name: values.pop(name) for name in names}))
    assert not values
    return prepare_search(*groups)


@pytest.mark.slow
def test_script_searches_extracts_compares_and_goes_on(tmp_path, monkeypatch, capsys):
    search = command("search")
    values = {**VALUES, "output_dir": str(tmp_path / "run"), "retrain": True, "num_seeds": 2}
    values["supernet_factor"] = 2.0
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(values))
    search([str(tmp_path / "search.yaml")])
    printed = capsys.readouterr().out
    assert "| 1 | found |" in printed and "| 2 | hand-made |" in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert len(results) == 2 * 2 * 4
    for row in results:
        if row["folder"]:
            model = AutoModelForImageClassification.from_pretrained(row["folder"])
            assert type(model) is AdaptiveViTForImageClassification
            assert model.config.elastic_space is None
            assert model.num_parameters() / 1e6 == row["costs"]["parameters"]
    steps = {
        path.parent.name: json.loads(path.read_text())["global_step"]
        for path in (tmp_path / "run" / "seed-1").glob("*/trainer_state.json")
    }
    assert steps.pop("supernet") == 4 and set(steps.values()) == {2} and len(steps) == 4
    gflops = {(row["seed"], row["budget"], row["way"]): row["costs"]["gflops"] for row in results}
    for seed in (0, 1):
        for budget in (1, 2):
            assert gflops[seed, budget, "found"] <= gflops[seed, budget, "hand-made"] * 1.000001
    for name in ("results.md", "pareto.png", "seed-0/history.jsonl", "seed-1/supernet/model.safetensors"):
        assert (tmp_path / "run" / name).is_file()

    def never(*args, **kwargs):
        raise AssertionError("it was done before")

    monkeypatch.setattr("vit_hf.search.running.prepare", never)
    history = (tmp_path / "run" / "seed-0" / "history.jsonl").read_text()
    search([str(tmp_path / "search.yaml")])
    assert (tmp_path / "run" / "seed-0" / "history.jsonl").read_text() == history
    # One that was killed after its last step, without a checkpoint.
    monkeypatch.undo()
    folder = tmp_path / "run" / "seed-0" / "hand-made-1"
    (folder / "done.json").unlink()
    arguments = [str(tmp_path / "search.yaml"), "--num_seeds", "1", "--retrain", "false"]
    search(arguments)
    assert (folder / "done.json").is_file() and folder.with_name("hand-made-1-previous-1").is_dir()
    # A supernet that was trained already, and a budget that is measured.
    given = {name: value for name, value in values.items() if not name.startswith(("elastic_", "config_"))}
    given = {name: value for name, value in given.items() if name not in ("position_encoding", "image_size")}
    given |= {
        "supernet": str(tmp_path / "run" / "seed-0" / "supernet"),
        "output_dir": str(tmp_path / "again"),
    }
    given |= {"num_hand_made": 0, "budget": "latency", "budgets": [1000.0]}
    given |= {"patch_selector": None, "num_selected_patches": None}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(given))
    search(arguments)
    (row,) = json.loads((tmp_path / "again" / "results.json").read_text())["rows"]
    assert row["way"] == "found" and row["costs"]["latency"] > 0


def test_a_network_is_measured_as_its_checkpoint(tmp_path):
    """Fitness is that of the extracted network, and what was measured is remembered."""
    run = prepare(tmp_path)
    torch.manual_seed(0)
    supernet = make_model(run.recipe.model, run.data).eval()
    processor = running_module.AutoImageProcessor.from_pretrained(saved_processor(tmp_path, supernet))
    bench = running_module.Bench(supernet, processor, run.data, run.recipe.training, tmp_path / "h.jsonl")
    network = run.hand_made[0]
    expected = bench.splits["validation"].evaluate(supernet.extract(network), bench.compute_metrics)
    assert bench.fitness(network) == expected["accuracy"]
    assert bench.cost(network, "parameters") == supernet.extract(network).num_parameters() / 1e6
    assert 0 < bench.cost(network, "gflops") < bench.cost(run.space.uniform(-1), "gflops")
    supernet.extract = None  # not asked again
    assert bench.fitness(network) == expected["accuracy"] and bench.cost(network, "gflops") > 0


def saved_processor(folder, supernet) -> Path:
    from vit_hf import AdaptiveViTImageProcessor

    path = folder / "processor"
    size = {"height": 32, "width": 32}
    AdaptiveViTImageProcessor(
        do_convert_rgb=False, image_mean=[0.5], image_std=[0.5], size=size, patch_size=8
    ).save_pretrained(path)
    supernet.config.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"elastic_{name}": None for name in ("hidden_sizes", "depths", "num_attention_heads", "mlp_ratios", "keep_rates")}, "single network: give elastic_hidden_sizes"),  # noqa: E501
        ({"validation_fraction": 0.0}, "no validation split"),
        ({"elastic_depths": [1, 3]}, "elastic_space.*depths.*num_hidden_layers"),
        ({"num_hand_made": 9}, "num_hand_made"),
        ({"num_hand_made": 0}, "give budgets"),
        ({"budgets": [-1.0]}, "above 0"),
        ({"num_seeds": 0}, "num_seeds is 0"),
        ({"supernet_factor": 0.0}, "supernet_factor is 0"),
        ({"population": 0}, "population is 0"),
        ({"supernet": "nowhere"}, "leave elastic_"),
        ({"overwrite_output_dir": True}, "overwrite_output_dir"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_said_first(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        prepare(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_budget_below_the_smallest_names_it(tmp_path, monkeypatch):
    run = prepare(tmp_path, budget="parameters", budgets=[1e-6])
    supernet = make_model(run.recipe.model, run.data).eval()
    bench = running_module.Bench(supernet, None, run.data, run.recipe.training, tmp_path / "h.jsonl")
    with pytest.raises(ValueError, match=r"parameters of 1e-06.*smallest.*it has 0.00"):
        run._search(bench, tmp_path, 0, 1, 1e-6)


def test_the_shipped_configuration_is_read():
    arguments = read_flags(GROUPS, ["--config", "search_digits"])
    assert arguments[4].supernet_factor == 3 and arguments[4].elastic_depths == [2, 3, 4]
