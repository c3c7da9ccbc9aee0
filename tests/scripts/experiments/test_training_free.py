"""`training_free.py` on two small made-up photos."""

import json

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from tests.helpers.models import tiny_config
from tests.helpers.scripts import load_experiment
from vit_hf import AdaptiveViTModel
from vit_hf.model.pixel_scorers import PIXEL_SCORERS


training_free = load_experiment("training_free")


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
    """Reads what torch 2.7 wrote of transformers 4: linear layers nameless and transposed, the table in
    two."""
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


def test_without_photos(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"training_free.py: .*pip install --no-deps"):
        training_free.main(["--device", "cpu"])
