"""`scripts/photo_recall.py` and `scripts/training_free.py` on small made-up images, and what else measures."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from tests.conftest import tiny_config
from vit_hf import AdaptiveViTModel
from vit_hf.data.tree_photos import windows
from vit_hf.model.pixel_scorers import PIXEL_SCORERS


def load_script(name: str):
    path = Path(__file__).parents[2] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


photo_recall = load_script("photo_recall")
training_free = load_script("training_free")

# Left and top of the only thing to see in each of two grey photos, a square of 16 pixels.
TREES = {"wood": (32, 64), "meadow": (144, 16)}


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two grey photos, of 128x128 and 192x128 pixels, with a checkerboard and its Pascal VOC box in each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for (name, (left, top)), width in zip(TREES.items(), (128, 192), strict=True):
        pixels = np.full((128, width, 3), 128, dtype=np.uint8)
        pixels[top : top + 16, left : left + 16] = 255 * (np.indices((16, 16)) // 4).sum(0)[..., None] % 510
        PIL.Image.fromarray(pixels).save(folder / f"{name}.png")
        sides = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{left + 16}</xmax><ymax>{top + 16}</ymax>"
        (folder / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><object><bndbox>{sides}</bndbox></object></annotation>"
        )
    return folder


def recall(photos: Path, *arguments: str) -> dict[str, dict]:
    flags = ["--data", str(photos), "--crop", "128", "--num-selected-patches", "4", "--device", "cpu"]
    return {row["selector"]: row for row in photo_recall.main([*flags, *arguments])}


def test_finds_what_can_be_seen(photos, tmp_path, capsys):
    files = tmp_path / "rows.json", tmp_path / "kept.png"
    rows = recall(photos, "--seeds", "3", "--output", str(files[0]), "--picture", str(files[1]))
    # 4 patches of 64 in the first photo; the second leaves a window of 64x128, where that share is 2 of 32.
    assert [rows["variance"][name] for name in ("hit", "touched", "covered")] == [1.0, 1.0, 1.0]
    assert rows["variance"]["photos"]["wood.png"]["on trees"] == 1 / 4
    assert rows["variance"]["photos"]["meadow.png"]["on trees"] == 1 / 2
    assert rows["random"]["hit"] < 1 and rows["random"]["seeds"] == 3
    assert rows["random, expected"]["hit"] == pytest.approx(1 / 16)
    assert rows["random, expected"]["on trees"] == pytest.approx((4 * 1 / 64 + 2 * 1 / 32) / 6)
    assert set(rows) == {"random, expected", "boxes known", *PIXEL_SCORERS}
    out = capsys.readouterr().out
    assert "2 trees in 2 windows of 2 photos; 6 patches of 96 kept (6.2%)" in out
    assert "| variance | 100.0% | 100.0% | 100.0% | 33.3% |" in out
    assert json.loads(files[0].read_text())["rows"][0]["selector"] == "random, expected"
    assert PIL.Image.open(files[1]).size[0] > 500


def test_expectation_is_the_mean_over_seeds(photos):
    rows = recall(photos, "--seeds", "300")
    for name in photo_recall.MEASURES:
        assert rows["random"][name] == pytest.approx(rows["random, expected"][name], abs=0.03)


def test_selectors_with_models(photos, tmp_path):
    AdaptiveViTModel(tiny_config()).save_pretrained(tmp_path / "plain")
    AdaptiveViTModel(tiny_config(patch_selector="variance")).save_pretrained(tmp_path / "own")
    flags = ["--checkpoint", str(tmp_path / "plain"), "--probe-num-layers", "1", "2"]
    flags += ["--probe-reduction", "mean", "rollout"]
    rows = recall(photos, *flags, "--models", str(tmp_path / "own"))
    assert rows["variance of own"]["hit"] == 1.0  # on patches of 8 pixels, from images half as wide
    assert {"attention of block 1", "attention of block 2, rollout"} <= set(rows)
    with pytest.raises(SystemExit, match=r"plain has no patch_selector"):
        recall(photos, "--models", str(tmp_path / "plain"))
    with pytest.raises(SystemExit, match=r"photo_recall.py: .*nowhere"):
        recall(photos, "--checkpoint", "./nowhere")


def test_without_photos(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"photo_recall.py: There are no Pascal VOC files"):
        recall(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for script in (photo_recall, training_free):
        with pytest.raises(SystemExit, match=r"pip install --no-deps"):
            script.main(["--device", "cpu"])


def test_windows():
    assert windows(10, 4, side=4, smallest=2) == [(0, 0, 4, 4), (4, 0, 8, 4), (8, 0, 10, 4)]
    assert windows(9, 5, side=4, smallest=2) == [(0, 0, 4, 4), (4, 0, 8, 4)]
    assert windows(3, 2, side=4, smallest=2) == [(0, 0, 3, 2)]


def test_all_patches_give_the_dense_state(photos, tmp_path, capsys):
    AdaptiveViTModel(tiny_config(layerscale_value=1.0)).save_pretrained(tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--images", str(photos), "--crop", "64", "--device", "cpu"]
    flags += [
        "--seeds",
        "2",
        "--probe-image-size",
        "32",
        "--thumbnail",
        "16",
        "--output",
        str(tmp_path / "rows.json"),
    ]
    rows = training_free.main([*flags, "--shares", "0.25", "1.0", "--keep-rates", "1.0"])
    found = {(row["method"], row["share"]): row for row in rows}
    names = {"resize", *PIXEL_SCORERS, "attention of block 3", "thumbnail of 4, random"}
    assert {(name, share) for name in names for share in (0.25, 1.0)} <= set(found)
    assert {("attentive", 1.0), ("merge", 1.0), ("merge in every block", 1.0)} <= set(found)
    for (name, share), row in found.items():
        if share == 1.0 and not name.startswith("thumbnail"):
            assert row["cosine"] == pytest.approx(1.0, abs=1e-5)
            assert row["sd"] == pytest.approx(0.0, abs=1e-5)
            assert row["neighbours"] == 1.0
            assert row["tokens"] == 64
        else:
            assert row["cosine"] < 0.9999
            assert row["tokens"] == 64 * share
    assert "10 windows of 2 images, 64 to 64 patches" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == len(rows)


def test_reads_what_torch_exports(tmp_path):
    """As torch 2.7 wrote a model of transformers 4: linear layers nameless and transposed, the table in two."""
    onnx = pytest.importorskip("onnx")
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 28}
    theirs = Dinov2Model(Dinov2Config(**sizes, layerscale_value=0.5)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    initializers, nodes = [], []
    for name, value in theirs.state_dict().items():
        for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            name = name.replace(new, f"attention.{old}")
        name, array = f"backbone.{name}".replace("o_proj", "output.dense"), value.numpy()
        arrays = {name: array}
        if name.endswith("position_embeddings"):
            arrays = {"onnx::Concat_1": array[:, :1], "onnx::Reshape_2": array[:, 1:]}
        elif name.endswith("weight") and array.ndim == 2:
            arrays = {f"onnx::MatMul_{len(nodes)}": array.T}
            layer = "/" + name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            nodes.append(
                onnx.helper.make_node("MatMul", ["input", *arrays], [f"{layer}/out"], f"{layer}/MatMul")
            )
        if not name.endswith("mask_token"):  # never reaches a graph
            initializers += [onnx.numpy_helper.from_array(array.copy(), key) for key, array in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "encoder", [], [], initializers)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "encoder.onnx")

    ours = training_free.convert_onnx(tmp_path / "encoder.onnx")
    images = torch.randn(2, 3, 56, 42)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
        torch.testing.assert_close(ours(images).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_resolution_transfer(tmp_path):
    flags = ["--encodings", "rotary_mixed", "none", "--seeds", "0", "--steps", "3", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[2] / "scripts/resolution_transfer.py", *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "| rotary_mixed | 1 |" in done.stdout and "| none | 1 |" in done.stdout
    for name in ("transfer.png", "similarity_rotary_mixed.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_large_image_cost(tmp_path):
    flags = ["--sides", "256", "2048", "--selectors", "entropy", "--output", str(tmp_path)]
    flags += ["--num-selected-patches", "64", "--memory-limit", "0.05"]
    script = Path(__file__).parents[2] / "scripts/large_image_cost.py"
    done = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        # The pixels of the larger one are 12 MiB, and 48 MiB as floats.
        assert row.get("out_of_memory", False) == (row["side"] == 2048 and row["way"] == "in memory")
        assert row.get("seconds", 1) > 0 and row.get("peak_mib", 1000) > 100
    assert "| 2048², tif |" in done.stdout and "out of 0.05 GiB" in done.stdout
    assert PIL.Image.open(tmp_path / "cost.png").size[0] > 800
