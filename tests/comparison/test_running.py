"""A comparison from end to end, with tiny models on few images of mixed sizes."""

import json
import re

import PIL.Image
import pytest
import torch
from transformers import ResNetConfig

from tests.helpers.classifiers import PROCESSOR, SIZE, resnet, swin, vit
from tests.helpers.models import tiny_config
from tests.helpers.runs import CLASSES, write_images
from tests.helpers.scripts import command
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.arguments import ComparedDataArguments, ComparisonArguments
from vit_hf.comparison import strategies as strategies_module
from vit_hf.comparison.results import read_rows
from vit_hf.comparison.running import compare
from vit_hf.comparison.strategies import STRATEGIES, Dense
from vit_hf.inference.aggregation import TILE_AGGREGATIONS


compare_command = command("compare")
LABELS = dict(enumerate(CLASSES))
NAMED = {"num_labels": 3, "id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
UNTRAINED = ("variance", "gradient", "entropy", "saliency", "random", "uniform", "attention")
# At 32 pixels a side the model has 16 patches.
ROWS = [
    *(f"resize to {side}x{side}" for side in (16, 24, 32, 64)),
    *(f"tiles of 32x32, {name}" for name in TILE_AGGREGATIONS),
    "all patches",
    *(f"{budget} patches, {name}" for name in UNTRAINED for budget in (4, 9)),
    *(
        f"{first}, {reducer} 0.5"
        for first in ("all patches", "9 patches, saliency")
        for reducer in ("merge", "attentive")
    ),
    "hybrid stem, all cells",
    "hybrid stem, 4 cells, saliency",
    "hybrid stem, 9 cells, saliency",
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise of three classes and several sizes, one of them smaller than the patches that are to be
    chosen."""
    root = tmp_path_factory.mktemp("mixed")
    for index, name in enumerate(CLASSES):
        for split, number in (("train", 3), ("test", 2)):
            for size in ((72, 88), (96, 64)):
                folder = root / split / name
                write_images(folder, number, seed=index, size=size)
                for file in list(folder.glob("?.png")):
                    file.rename(folder / f"{size[0]}_{file.name}")
    PIL.Image.new("RGB", (16, 17), "teal").save(root / "test" / CLASSES[0] / "small.png")
    return root


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    stem = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    models = {
        "ours": AdaptiveViTForImageClassification(tiny_config(**NAMED, position_encoding="rotary")),
        "hybrid": AdaptiveViTForImageClassification(tiny_config(**NAMED, backbone_config=stem.to_dict())),
        "other classes": vit(num_labels=4),
        "resnet": resnet(),
        "swin": swin(),
    }
    for name in ("resnet", "swin"):
        models[name].config.id2label, models[name].config.label2id = LABELS, NAMED["label2id"]
    for name, model in models.items():
        model.save_pretrained(root / name)
        processor = (
            AdaptiveViTImageProcessor(size=SIZE, patch_size=8) if name in ("ours", "hybrid") else PROCESSOR
        )
        processor.save_pretrained(root / name)
    return root


@pytest.fixture
def run(photos, checkpoints, tmp_path):
    """Compares, in this process, and returns the rows by name and what was said."""

    def compare_them(model="ours", data=photos, **arguments):
        said = []
        values = {"tokens": [4, 9], "keep_rates": [0.5], "repeats": 1, "batch_size": 4, "isolate": False}
        values |= {
            "output": str(tmp_path / "out"),
            "use_cpu": True,
            "model_name_or_path": str(checkpoints / model),
        }
        result = compare(
            ComparisonArguments(**values | arguments), ComparedDataArguments(dataset=str(data)), said.append
        )
        return {row.name: row for row in result.rows}, said

    return compare_them


def test_every_row(photos, checkpoints, tmp_path, capsys):
    flags = ["--model", str(checkpoints / "ours"), "--hybrid", str(checkpoints / "hybrid")]
    flags += ["--data", str(photos), "--tokens", "4", "9", "--keep_rates", "0.5", "--repeats", "1"]
    flags += ["--isolate", "false", "--use_cpu", "--output", str(tmp_path), "--card", str(tmp_path / "card")]
    compare_command(flags)
    said, page = capsys.readouterr().out, (tmp_path / "report.html").read_text()
    rows = {row["name"]: row for row in read_rows(tmp_path / "results.csv")}
    assert list(rows) == ROWS
    for row in rows.values():
        assert row["reason"] == ""
        assert row["num_images"] == "13"
        assert 0 <= float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"]) <= 1
        assert float(row["latency_ms"]) > 0 and float(row["images_per_s"]) > 0
        assert float(row["gflops_counted"]) > 0 and float(row["gflops_formula"]) > 0
    tokens = {name: (int(row["tokens"]), int(row["tokens_out"])) for name, row in rows.items()}
    dense = 12 * 8  # of the image of median area
    assert tokens["all patches"] == tokens["hybrid stem, all cells"] == (dense, dense)
    assert tokens["resize to 24x24"] == (9, 9) and tokens["4 patches, random"] == (4, 4)
    assert tokens["tiles of 32x32, mean"] == (3 * 4 * 16, 3 * 4 * 16)
    assert tokens["all patches, merge 0.5"][1] < dense / 3
    counted = re.findall(r"^(\d+) of (\d+): .*%", said, re.MULTILINE)
    assert [int(number) for number, _ in counted] == list(range(1, int(counted[0][1]) + 1))
    assert f"4 of {dense}" in page
    front = [row for row in rows.values() if row["on_front_of_latency"] == "True"]
    assert max(float(row["accuracy"]) for row in rows.values()) in [float(row["accuracy"]) for row in front]

    assert "No strategy was fine-tuned" in said and "No strategy was fine-tuned" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # needs no other file
    # The image, and of what differs by numbers alone one each: three panels of each.
    assert page.count("<figure>") == 3 * (1 + 4 + 1 + 1 + len(UNTRAINED) + 4 + 2)
    assert PIL.Image.open(tmp_path / "pareto.png").width > 1000
    card = (tmp_path / "card" / "README.md").read_text()
    assert card.count("\n| ") == 1 + len(ROWS) and "vit-hf compare --model" in card
    assert (tmp_path / "card" / "results.csv").read_text() == (tmp_path / "results.csv").read_text()


def test_what_is_finished_is_not_run_again(run, checkpoints):
    first, said = run(strategies=["resize", "dense"])
    assert not any("as before" in line for line in said)
    again, said = run(strategies=["resize", "dense"])
    assert all("as before" in line for line in said) and again == first
    more, said = run(strategies=["resize", "dense", "tiles"], aggregations=["max"])
    assert sum("as before" in line for line in said) == 5
    # By turns: a new one means that all are timed again.
    assert said[-1] == "Speed of 6 strategies, by turns"
    assert more["all patches"].right == first["all patches"].right
    fewer, said = run(strategies=["dense"])
    assert len(said) == 1 and fewer["all patches"].latency_ms == more["all patches"].latency_ms
    _, said = run(strategies=["dense"], seed=1)
    assert "as before" not in said[0]
    config = checkpoints / "ours" / "config.json"
    config.write_text(config.read_text() + "\n")
    _, said = run(strategies=["dense"], seed=1)
    assert "as before" not in said[0]


def test_a_failing_strategy_is_a_row(run, monkeypatch, tmp_path):
    def load(self, path, device):
        raise RuntimeError("not enough memory:\nyou tried to allocate 64 GiB")

    monkeypatch.setattr(Dense, "load", load)
    rows, _ = run(strategies=["dense", "resize"])
    assert rows["all patches"].reason == "not enough memory: you tried to allocate 64 GiB"
    assert rows["all patches"].accuracy is None and rows["resize to 32x32"].accuracy is not None
    monkeypatch.undo()
    rows, said = run(strategies=["dense", "resize"])
    assert rows["all patches"].accuracy is not None
    assert [("as before" in line) for line in said[:-1]] == [False, True, True, True, True]


def test_a_strategy_that_cannot_be_timed_is_a_row(run, monkeypatch, tmp_path):
    load, loads = Dense.load, []

    def load_once(self, path, device):
        loads.append(path)
        if len(loads) == 2:
            # What was measured so far is in the file.
            rows = {row["name"]: row for row in read_rows(tmp_path / "out" / "results.csv")}
            assert rows["all patches"]["accuracy"] and not rows["all patches"]["latency_ms"]
            raise RuntimeError("out of memory")
        return load(self, path, device)

    monkeypatch.setattr(Dense, "load", load_once)
    rows, _ = run(strategies=["dense", "resize"])
    assert rows["all patches"].reason == "out of memory" and next(iter(rows)) == "all patches"
    assert all(row.latency_ms > 0 for name, row in rows.items() if name != "all patches")
    # A file that was cut off counts as none.
    (tmp_path / "out" / "speeds.json").write_text('{"settings"')
    (tmp_path / "out" / "strategies" / "resize_to_32x32" / "result.json").write_text("")
    rows, said = run(strategies=["dense", "resize"])
    assert rows["all patches"].latency_ms > 0
    assert sum("as before" in line for line in said) == len(rows) - 1


def test_a_model_that_is_no_vit(run):
    rows, _ = run("resnet", aggregations=["mean"], selectors=["random", "variance"])
    assert rows["tiles of 32x32, mean"].accuracy is not None and rows["all patches"].accuracy is not None
    assert rows["resize to 32x32"].gflops_counted > 0 and rows["resize to 32x32"].tokens is None
    for family in ("select", "reduce"):
        assert "'resnet' cannot be converted" in rows[family].reason
    assert "hybrid" not in rows


def test_swin(run):
    """A number of patches is one of windows; what asks for a CLS token, or thins tokens, is told why not."""
    chosen = {"strategies": ["resize", "dense", "select", "reduce"], "selectors": ["saliency", "attention"]}
    rows, _ = run("swin", tokens=[32], token_reducers=["merge"], **chosen)
    for name in ("resize to 32x32", "all patches", "32 patches, saliency"):
        assert rows[name].accuracy is not None and rows[name].gflops_counted > 0
    assert rows["32 patches, saliency"].gflops_counted < rows["all patches"].gflops_counted
    assert "Swin has none" in rows["32 patches, attention"].reason
    assert "windows need a full grid" in rows["all patches, merge 0.5"].reason


def test_adapting_swin(run):
    """Of images of mixed sizes, which no batch can have."""
    chosen = {"strategies": ["resize", "dense", "select"], "selectors": ["saliency"], "tokens": [32]}
    rows, _ = run("swin", **chosen, adapt=2, adapt_batch_size=2, adapt_learning_rate=1e-3)
    assert rows.keys() >= {"resize to 32x32", "all patches", "32 patches, saliency"}
    assert all(row.reason is None and row.adapt_steps == 2 for row in rows.values())


def test_learned_selectors(run):
    rows, _ = run(strategies=["select"], selectors=["policy", "random"], tokens=[9])
    assert "policy' is learned" in rows["9 patches, policy"].reason
    assert rows["9 patches, random"].accuracy is not None


def test_adapting(run, tmp_path):
    """Other classes than the checkpoint's: everything gets a new head, and what is trained alike is
    trained once."""
    chosen = {"strategies": ["resize", "tiles", "dense", "select", "reduce"], "aggregations": ["max"]}
    chosen |= {"selectors": ["random", "policy"], "tokens": [9], "token_reducers": ["merge"]}
    with pytest.raises(ValueError, match=r"give --adapt STEPS"):
        run("other classes", **chosen)
    options = {"adapt": 2, "adapt_batch_size": 3, "adapt_learning_rate": 1e-3}
    rows, _ = run("other classes", **chosen, **options)
    assert len(rows) == 3 + 1 + 1 + 2 + 2
    assert all(row.reason is None and row.adapt_steps == 2 for row in rows.values())
    # Three sizes (tiles use that of 32), dense (and merge after it), random, policy (and merge after it).
    assert len(list((tmp_path / "out" / "adapted").iterdir())) == 3 + 1 + 2
    results = [
        json.loads(file.read_text()) for file in (tmp_path / "out" / "strategies").glob("*/result.json")
    ]
    paths = {result["settings"]["name"]: result["path"] for result in results}
    assert paths["all patches"] == paths["all patches, merge 0.5"]
    assert paths["tiles of 32x32"] == paths["resize to 32x32"] != paths["resize to 24x24"]


def test_a_new_strategy_is_a_class_and_a_line(run, monkeypatch):
    class Corner(Dense):
        """The upper left patch."""

        @classmethod
        def variants(cls, setting):
            changes = {"resolution": setting.checkpoint.patch_size, "patch_selector": "none"}
            return [cls(name="corner", checkpoint=setting.checkpoint, changes=changes)]

    monkeypatch.setitem(strategies_module.STRATEGIES, "corner", Corner)
    rows, _ = run(strategies=["corner"])
    assert rows["corner"].tokens == 1 and rows["corner"].strategy == "corner"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_name_or_path": None}, "name the model"),
        ({"model_name_or_path": "./nowhere"}, "no folder ./nowhere"),
        ({"adapt": 1, "split": "train"}, "adapt fine-tunes on the train split"),
        ({"selectors": ["contrast"]}, "'contrast'; choose from variance"),
        ({"tokens": [0]}, "tokens are"),
        ({"keep_rates": [1.0]}, "keep_rates has 1.0"),
        ({"repeats": 0}, "repeats is 0"),
    ],
)
def test_refusals(run, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(**arguments)


@pytest.mark.slow
def test_processes_of_their_own(run):
    rows, _ = run(strategies=["resize", "select"], selectors=["variance"], isolate=True)
    assert all(row.peak_memory_mib >= 0 for row in rows.values())
    assert set(STRATEGIES) >= {row.strategy for row in rows.values()}
