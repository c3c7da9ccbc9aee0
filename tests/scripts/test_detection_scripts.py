"""`vit-hf detect` on pieces of aerial photos and on digits."""

import json
import shutil

import PIL.Image
import pytest
from transformers import AutoModelForObjectDetection, pipeline

from tests.helpers.scripts import TINY, command
from vit_hf.data.measurement_images import deepforest_folder


pytest.importorskip("pycocotools", reason="pip install vit_hf[detection]")
pytest.importorskip("torchmetrics", reason="pip install vit_hf[detection]")

VIT = {name: value for name, value in TINY.items() if name != "num_channels"}
HEAD = {
    "d_model": 32,
    "num_queries": 30,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_feature_levels": 1,
}


@pytest.fixture
def trees(tmp_path):
    """Photos of forests as people have them: TIFF and PNG of 400x400 pixels with 98 boxes of three
    classes."""
    try:
        source = deepforest_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    for split, name in {"train": "OSBS_029.tif", "validation": "SOAP_061.png"}.items():
        (tmp_path / "trees" / split).mkdir(parents=True)
        for file in (source / name, (source / name).with_suffix(".xml")):
            shutil.copy(file, tmp_path / "trees" / split)
    return tmp_path / "trees"


def test_trees(trees, tmp_path, capsys):
    flags = ["--dataset", str(trees), "--single_class", "true", "--crop_size", "128"]
    flags += ["--per_device_train_batch_size", "4", "--disable_tqdm", "true", "--use_cpu", "true"]
    model = ["--config_overrides", json.dumps(VIT), "--detector_overrides", json.dumps(HEAD)]
    model += ["--patch_selector", "saliency", "--num_selected_patches", "0.5", "--num_train_epochs", "1"]
    detect_command, output = command("detect"), tmp_path / "run"
    model += ["--evaluate_merged", "true"]
    detect_command([*flags, *model, "--horizontal_flip", "0.5", "--output_dir", str(output)])
    printed = capsys.readouterr().out
    assert "1 train with 61 boxes in 16 pieces, 1 validation with 37 boxes in 16 pieces; 1 class" in printed
    assert "eval_map_50" in printed and f"Saved to {output}" in printed
    merged = json.loads((output / "validation_merged_results.json").read_text())
    assert 0 <= merged["map_50"] <= 1
    metrics = json.loads((output / "all_results.json").read_text())
    assert {"train_loss", "eval_loss", "eval_map", "eval_map_50", "eval_mar_100"} <= metrics.keys()
    assert PIL.Image.open(output / "detections.png").size[0] > 1000

    assert AutoModelForObjectDetection.from_pretrained(output).config.id2label == {0: "object"}
    detect = pipeline("object-detection", model=str(output))
    found = detect(str(trees / "validation" / "SOAP_061.png"), threshold=0.0)
    assert len(found) == 30 and {answer["label"] for answer in found} == {"object"}

    # On whole photos, and with another number of patches; nothing is trained.
    flags += [
        "--model_name_or_path",
        str(output),
        "--evaluate_only",
        "true",
        "--evaluate_whole_images",
        "true",
    ]
    detect_command([*flags, "--num_selected_patches", "200", "--output_dir", str(tmp_path / "again")])
    printed = capsys.readouterr().out
    assert "Run:    evaluates" in printed and "200 patches of an image by saliency" in printed
    assert "eval_map_50" in printed and "train_loss" not in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_digits_of_the_configuration_are_found(tmp_path):
    """The run that the configuration describes, and no step less."""
    flags = ["--output_dir", str(tmp_path / "run"), "--disable_tqdm", "true", "--use_cpu", "true"]
    command("detect")(["--config", "detect_digits", *flags])
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["test_map_50"] > 0.7


def test_what_is_wrong_ends_with_a_message(tmp_path):
    with pytest.raises(SystemExit, match=r"vit-hf detect: there is no file or folder .*nowhere"):
        command("detect")(["--dataset", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
