"""`vit-hf explain`."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.helpers.models import tiny_config
from tests.helpers.scripts import command
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor


main = command("explain")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A saved model, two good images of the same name, a damaged one and a file of text."""
    config = tiny_config(patch_selector="variance", id2label=dict(enumerate(["7", "1", "2", "3", "4"])))
    AdaptiveViTForImageClassification(config).save_pretrained(tmp_path / "model")
    AdaptiveViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    values = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    for name in ("a/cat.png", "b/cat.png", "broken.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(values).save(path)
    (tmp_path / "broken.png").write_bytes((tmp_path / "broken.png").read_bytes()[:500])
    (tmp_path / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, status: int = 0) -> None:
    try:
        main(["--model_name_or_path", "model", "--device", "cpu", *arguments])
    except SystemExit:
        if not status:
            raise
    else:
        assert not status


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png")}


def test_draws_and_says_where(folder, capsys):
    run("--images", "a/cat.png", "b/cat.png", "--output", "out", "--labels", "7", "0")
    assert written(folder / "out") == {"cat_overview.png", "cat_2_overview.png", "positions.png"}
    first, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"a/cat.png: [71234] \(\d+\.\d%\), \d+ of 16 patches kept", first)
    assert lines.pop(2) == first.replace("a/", "b/")
    assert lines == [
        f"a/cat.png: {Path('out/cat_overview.png')}",
        f"a/cat.png: {Path('out/positions.png')}",
        f"b/cat.png: {Path('out/cat_2_overview.png')}",
        f"statistics: {Path('out/statistics.csv')}",
    ]


def test_takes_folders(folder, capsys):
    run("--images", "a", "b", "--output", "out")
    said = capsys.readouterr()
    assert written(folder / "out") == {"cat_overview.png", "cat_2_overview.png", "positions.png"}
    assert f"{Path('b/cat.png')}: " in said.out
    run("--images", ".", "--output", "all", status=1)  # one of them is damaged
    assert {"a_cat_overview.png", "b_cat_overview.png"} <= written(folder / "all")
    assert "files of unknown type" in capsys.readouterr().err


def test_goes_on_after_damaged_files_and_reports_them(folder, capsys):
    with pytest.raises(SystemExit) as exit:
        run("--images", "broken.png", "a/cat.png", "notes.txt", "nowhere.png", "b/cat.png")
    # A message instead of a number makes the status 1, and goes to the standard error.
    message = str(exit.value.code)
    assert message.startswith("3 of 5 images were left out:")
    for name in ("broken.png", "notes.txt", "nowhere.png"):
        assert name in message
    assert "cat.png" not in message
    assert written(folder / "explanations") == {"cat_overview.png", "cat_2_overview.png", "positions.png"}


def test_overrides(folder):
    run("--images", "a/cat.png", "--pictures", "scores", "--patch_selector", "attention")
    assert written(folder / "explanations") == {"cat_scores.png"}
    with pytest.raises(SystemExit, match="num_selected_patches=17 does not fit an image of 16 patches"):
        run("--images", "a/cat.png", "--num_selected_patches", "17")
    with pytest.raises(SystemExit, match=r"vit-hf explain: patch_selector='best' is unknown"):
        run("--images", "a/cat.png", "--patch_selector", "best")
    with pytest.raises(SystemExit, match="patch_selector='policy' is learned, in fine-tuning"):
        run("--images", "a/cat.png", "--patch_selector", "policy")


def test_flags_from_a_file(folder):
    (folder / "flags.yaml").write_text(
        "model_name_or_path: model\nimages: [a/cat.png]\npictures: "
        "[patches]\nnum_selected_patches: 0.5\noutput: out\n"
    )
    # Without a device, whatever there is.
    main(["flags.yaml"])
    assert written(folder / "out") == {"cat_patches.png"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", "1", "2"], "2 labels for 1 images"),
        (["--pictures", "maps"], "invalid choice: 'maps'"),
        (
            ["--num_selected_patches", "few"],
            "num_selected_patches='few' must be a number of patches of at least 1",
        ),
    ],
)
def test_wrong_flags(folder, capsys, flags, message):
    with pytest.raises(SystemExit) as exit:
        run("--images", "a/cat.png", *flags)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_no_model_and_no_device(folder):
    with pytest.raises(SystemExit, match=r"vit-hf explain: .*nowhere"):
        main(["--model_name_or_path", "./nowhere", "--images", "a/cat.png"])
    with pytest.raises(SystemExit, match=r"vit-hf explain: .*abacus"):
        main(["--model_name_or_path", "model", "--images", "a/cat.png", "--device", "abacus"])


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    assert "explanations" in capsys.readouterr().out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_statistics(folder):
    boxes = {"a/cat.png": [[0, 0, 48, 40]], "b/cat.png": None}
    (folder / "boxes.json").write_text(json.dumps(boxes))
    run("--images", "a/cat.png", "broken-not.png", "b/cat.png", "--boxes", "boxes.json", status=1)
    first, second = rows(folder / "explanations" / "statistics.csv")
    assert (first["image"], second["image"]) == ("cat", "cat_2")
    assert first["num_patches"] == "16" and first["num_kept"] == "6"
    assert float(first["object_covered"]) == pytest.approx(6 / 16)
    assert second["object_covered"] == ""


def test_no_statistics_of_nothing(folder):
    run("--images", "broken.png", "--output", "out", status=1)
    assert not (folder / "out").exists()


def test_boxes_by_file_name(folder):
    (folder / "boxes.json").write_text('{"cat.png": [[0, 0, 4800, 4000]], "dog.png": []}')
    run("--images", "a/cat.png", "--boxes", "boxes.json", "--output", "out")
    assert rows(folder / "out" / "statistics.csv")[0]["num_objects"] == "1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[0, 0, 8, 8]]", r"must hold an object \{image: "),
        ("{", "boxes.json is not valid JSON"),
        ('{"dog.png": []}', "names none of the images; it names 'dog.png'"),
        ('{"cat.png": [[0, 0, 8, 8]]}', "means 2 images by 'cat.png'; name them there as in --images"),
    ],
)
def test_wrong_boxes(folder, text, message):
    (folder / "boxes.json").write_text(text)
    with pytest.raises(SystemExit, match=message):
        run("--images", "a/cat.png", "b/cat.png", "--boxes", "boxes.json")
    assert not (folder / "explanations").exists()
    with pytest.raises(SystemExit, match=r"vit-hf explain: .*nowhere\.json"):
        run("--images", "a/cat.png", "--boxes", "nowhere.json")


def test_stages(folder):
    config = tiny_config(token_reducer="merge", keep_rate=0.6, reduction_layers=[1])
    AdaptiveViTForImageClassification(config).save_pretrained(folder / "model")
    run("--images", "a/cat.png", "--pictures", "stages")
    assert written(folder / "explanations") == {"cat_stages.png"}
    assert rows(folder / "explanations" / "statistics.csv")[0]["tokens_after_block_2"] == "10"
