"""How a folder is read, by every task: splits, classes, links, strange names, and what is left out."""

import os

import datasets
import numpy as np
import PIL.Image
import pytest

from vit_hf.arguments import DataArguments, EvaluationArguments
from vit_hf.checkpoints.loading import load_classifier
from vit_hf.data.box_sources import load_boxed_images
from vit_hf.data.collections import Stores, find_collection
from vit_hf.data.image_folders import LeftOut, list_files
from vit_hf.data.images import find_images
from vit_hf.data.loading import load_image_dataset, load_unlabeled
from vit_hf.data.masks import load_masked_images
from vit_hf.inference.evaluation import evaluate_model
from vit_hf.inference.predict import predict_files
from vit_hf.readers.suffixes import IMAGE_SUFFIXES, REGION_SUFFIXES, is_whole_image


VOC = (
    "<annotation><filename>{}</filename><object><name>a</name><bndbox>"
    "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax>"
    "<ymax>5</ymax></bndbox></object></annotation>"
)
TASKS = ("classes", "unlabelled", "masks", "boxes")
STRAYS = [
    ".git/a.png",
    ".ipynb_checkpoints/a-checkpoint.png",
    "__MACOSX/train/._a.png",
    "@eaDir/a.png",
    ".thumbnails/a.png",
    "Thumbs.db",
    ".DS_Store",
    "._train",
    "$RECYCLE.BIN/a.png",
    "#recycle/a.png",
    "lost+found/a.png",
    "notes.txt",
    "extra/a.png",
    "wandb/run.log",
]
NAMES = ("run[1]", "what*", "why?", "{a,b}", "[!x]", "a b#%", "**")


def picture(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("L", (8, 8), 100).save(path)


def make(folder, task: str, counts: dict[str, int]) -> None:
    """A folder for a task, with `counts` images in each split of each of two classes; "" is no split."""
    for split, count in counts.items():
        lines = ["file_name,mask_file_name"]
        for index in range(count):
            for name in ("cat", "dog"):
                at = folder / split if task in ("boxes", "masks") else folder / split / name
                file = at / f"{split}{name}{index}.png"
                picture(file)
                if task == "boxes":
                    file.with_suffix(".xml").write_text(VOC.format(file.name))
                if task == "masks":
                    (at / "masks").mkdir(exist_ok=True)
                    PIL.Image.fromarray(np.eye(8, dtype=np.uint8)).save(at / "masks" / file.name)
                    lines.append(f"{file.name},masks/{file.name}")
        if task == "masks":
            (folder / split / "metadata.csv").write_text("\n".join(lines))


def read(folder, task: str) -> tuple[dict[str, int], list[str]]:
    """Sizes of the splits, and notes."""
    if task == "classes":
        data = load_image_dataset(str(folder), validation_fraction=0)
        assert sorted(data.label2id) == ["cat", "dog"]
        splits, notes = data.splits, data.describe_left_out()
    elif task == "unlabelled":
        splits, notes = load_unlabeled(str(folder), validation_fraction=0)
    else:
        arguments = DataArguments(dataset=str(folder), validation_fraction=0.0)
        data = load_masked_images(arguments, False) if task == "masks" else load_boxed_images(arguments)
        splits, notes = data.splits, data.notes
    return {name: len(images) for name, images in splits.items()}, notes


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "DEV", "Evaluation")])
def test_splits_are_splits_whatever_lies_beside_them(tmp_path, task, names):
    counts = dict(zip(names, (3, 2, 1), strict=True))
    make(tmp_path, task, counts)
    expected = {"train": 6, "validation": 4, "test": 2}
    sizes, notes = read(tmp_path, task)
    assert sizes == expected
    assert notes == []
    for stray in STRAYS:
        path = tmp_path / stray
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(path) if stray.endswith(".png") else path.write_text("x")
    sizes, notes = read(tmp_path, task)
    assert sizes == expected
    (note,) = notes
    for kind in (
        "3 folders that begin with a dot",
        "5 folders of the system",
        "1 file of the system",
        "extra",
        "wandb",
    ):
        assert kind in note


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_names_of_folders_are_no_patterns(tmp_path, task, name):
    make(tmp_path / name, task, {"": 2})
    for other in ("run1", "whatever", "whyx", "a", "b", "y"):
        make(tmp_path / other, task, {"": 1})
    assert read(tmp_path / name, task)[0] == {"train": 4}


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_tables_are_no_patterns(tmp_path, name):
    make(tmp_path / name, "classes", {"": 2})
    make(tmp_path / "run1", "classes", {"": 2})
    assert len(find_images([str(tmp_path / name)])) == 4
    assert len(find_images([str(tmp_path / name / "cat" / "*.png")])) == 2
    assert find_images([str(tmp_path / name / "cat" / "cat0.png")]) == [
        str(tmp_path / name / "cat" / "cat0.png")
    ]
    assert len(find_collection([str(tmp_path / name)], Stores())[0]) == 4
    rows = {"image": [str(tmp_path / name / "cat" / "cat0.png")] * 4, "label": ["a", "b"] * 2}
    rows = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    (tmp_path / "tables" / name).mkdir(parents=True)
    rows.to_parquet(tmp_path / "tables" / name / "train.parquet")
    rows.select([0, 1]).to_parquet(tmp_path / "tables" / name / "dev-0.parquet")
    data = load_image_dataset(str(tmp_path / "tables" / name))
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 4, "validation": 2}
    file = tmp_path / "tables" / name / "train.parquet"
    assert len(load_image_dataset(str(file), validation_fraction=0).splits["train"]) == 4


@pytest.mark.parametrize("split", ["", "train"])
@pytest.mark.parametrize("inner", [("2020", "2021"), ("left/a", "right/b"), ("2020", ".")])
def test_the_class_is_the_first_folder_below_the_split(tmp_path, split, inner):
    for name in ("cat", "dog"):
        for folder in inner:
            picture(tmp_path / split / name / folder / "0.png")
    assert read(tmp_path, "classes") == ({"train": 4}, [])


@pytest.mark.parametrize("load", [load_image_dataset, load_unlabeled])
@pytest.mark.parametrize(
    ("files", "match"),
    [
        (
            ["cat/train/a.png", "cat/test/b.png", "dog/train/a.png"],
            "splits further down.*cat/test, cat/train",
        ),
        (["all/train/cat/a.png", "all/val/cat/b.png"], "splits further down.*all/train, all/val"),
        (["training_set/cat/a.png", "test_set/cat/a.png"], "test_set, training_set.*named much like splits"),
        (["train/2020/a.png", "bus/2020/a.png"], "two ways.*train.*bus"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, load, files, match):
    for file in files:
        picture(tmp_path / file)
    with pytest.raises(ValueError, match=match):
        load(str(tmp_path))


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        for index in range(2):
            picture(tmp_path / name / f"{index}.png")
    assert load_image_dataset(str(tmp_path), validation_fraction=0).label2id == {"bus": 0, "train": 1}
    with pytest.raises(ValueError, match="two ways"):
        load_unlabeled(str(tmp_path))


@pytest.mark.parametrize("task", TASKS)
def test_links_are_followed_and_loops_are_not(tmp_path, task):
    make(tmp_path / "store", task, {"": 2})
    (tmp_path / "data").mkdir()
    if task in ("classes", "unlabelled"):
        for name in ("cat", "dog"):
            (tmp_path / "data" / name).symlink_to(tmp_path / "store" / name)
        (tmp_path / "store" / "cat" / "loop").symlink_to(tmp_path / "data")
    else:
        (tmp_path / "data" / "train").symlink_to(tmp_path / "store")
        (tmp_path / "store" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    sizes, notes = read(tmp_path / "data", task)
    assert sizes == {"train": 4}
    assert "1 link to a folder above it" in notes[0] and "1 broken link (gone.png)" in notes[0]


def test_links_are_followed_by_prediction(tmp_path):
    make(tmp_path / "store", "classes", {"": 2})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "store" / "cat")
    (tmp_path / "store" / "cat" / "loop").symlink_to(tmp_path / "data")
    names = [str(tmp_path / "data" / "cat" / f"cat{index}.png") for index in range(2)]
    assert find_images([str(tmp_path / "data")]) == names
    assert find_collection([str(tmp_path / "data")], Stores())[0] == names


def test_class_folders_of_strange_names_are_kept_or_named(tmp_path):
    for name in ("_background_", "cat", ".hidden", "empty"):
        for index in range(2):
            picture(tmp_path / name / f"{index}.PNG")
    for index in range(2):
        (tmp_path / "empty" / f"{index}.PNG").unlink()
    picture(tmp_path / "loose.png")
    data = load_image_dataset(str(tmp_path), validation_fraction=0)
    assert sorted(data.label2id) == ["_background_", "cat"]
    (note,) = data.notes
    assert "1 folder that begins with a dot (.hidden)" in note
    assert "1 folder without images (empty)" in note
    assert "1 image in no class folder (loose.png)" in note


def test_names_that_are_not_utf8(tmp_path):
    make(tmp_path, "classes", {"": 2})
    os.rename(os.fsencode(tmp_path / "cat" / "cat0.png"), os.fsencode(tmp_path / "cat") + b"/caf\xe9.png")
    for load in (load_image_dataset, load_unlabeled):
        with pytest.raises(ValueError, match=r"caf\\xe9\.png is not UTF-8: rename"):
            load(str(tmp_path))
    assert len(find_images([str(tmp_path)])) == 4


def test_one_list_of_what_an_image_is(tmp_path):
    zarr = pytest.importorskip("zarr")
    for name in ("a.png", "b.JPG", ".hidden.png", "._a.png", "folder.png/c.tif"):
        picture(tmp_path / name)
    np.save(tmp_path / "array.npy", np.zeros((8, 8, 3), np.uint8))
    for name in ("slide.svs", "scan.NDPI", "text.txt"):
        (tmp_path / name).write_text("x")
    zarr.save_array(str(tmp_path / "volume.zarr"), np.zeros((8, 8, 3), np.uint8))
    whole = {"a.png", "b.JPG", "folder.png/c.tif"}
    regions = {"array.npy", "slide.svs", "scan.NDPI", "volume.zarr"}

    left_out = LeftOut()
    found = {os.path.relpath(file, tmp_path) for file in find_images([str(tmp_path)], left_out)}
    assert found == whole | regions
    assert left_out.notes() == [
        "left out: 2 files that begin with a dot (._a.png, .hidden.png), 1 file of unknown type (text.txt)"
    ]
    for find in (
        lambda told: find_images([str(tmp_path)], told, is_whole_image),
        lambda told: find_collection([str(tmp_path)], Stores(), left_out=told)[0],
    ):
        left_out = LeftOut()
        assert {os.path.relpath(file, tmp_path) for file in find(left_out)} == whole
        assert "4 images of kinds that only vit-hf predict --tile reads" in left_out.notes()[0]
    splits, notes = load_unlabeled(str(tmp_path), validation_fraction=0)
    assert len(splits["train"]) == 3
    assert "4 images of kinds that only vit-hf predict --tile reads" in notes[0]


@pytest.mark.parametrize("load", [load_image_dataset, load_unlabeled])
def test_a_folder_of_images_that_training_cannot_read_says_so(tmp_path, load):
    np.save(tmp_path / "array.npy", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"no images in it that training reads.*array\.npy"):
        load(str(tmp_path))
    assert find_images([str(tmp_path)]) == [str(tmp_path / "array.npy")]


def test_suffixes_are_what_open_image_and_datasets_read():
    from datasets.packaged_modules.imagefolder.imagefolder import IMAGE_EXTENSIONS

    stubs = {".bufr", ".grib", ".mpg", ".mpeg", ".wmf", ".emf"}
    assert set(IMAGE_EXTENSIONS) - stubs <= IMAGE_SUFFIXES
    assert not stubs & IMAGE_SUFFIXES
    assert {".svs", ".ndpi", ".mrxs", ".npy", ".zarr", ".dcm"} <= REGION_SUFFIXES


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    make(tmp_path, "classes", {"": 1})

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        list(list_files(tmp_path, LeftOut()))


def test_splits_of_other_names_are_named(tmp_path):
    rows = datasets.Dataset.from_dict({"image": [PIL.Image.new("L", (8, 8))] * 4, "label": ["a", "b"] * 2})
    rows = rows.cast_column("image", datasets.Image())
    datasets.DatasetDict(train=rows, valid=rows, dev=rows, extra=rows).save_to_disk(tmp_path / "data")
    data = load_image_dataset(str(tmp_path / "data"))
    assert data.notes == ["left out: 2 splits of other names (dev, extra)"]


def test_a_run_among_strange_names_says_what_is_left_out(make_run, tmp_path):
    """Dataset, output folder, checkpoints, evaluation and prediction: no path is a pattern anywhere."""
    folder = tmp_path / "data[1]*?"
    make(folder, "classes", {"train": 2, "test": 1})
    (folder / "notes.txt").write_text("x")
    arguments = {
        "output_dir": "out[1]*?",
        "dataset": folder,
        "validation_fraction": 0.5,
        "save_strategy": "epoch",
    }
    run = make_run(**arguments, num_train_epochs=1)
    assert "left out: 1 file of unknown type (notes.txt)" in run.describe()
    run.execute()
    output = tmp_path / "out[1]*?"
    assert make_run(**arguments, num_train_epochs=2).checkpoint == output / "checkpoint-1"
    said = []
    evaluate_model(
        EvaluationArguments(model_name_or_path=str(output), use_cpu=True),
        DataArguments(dataset=str(folder)),
        said.append,
    )
    assert said == ["left out: 1 file of unknown type (notes.txt)"]
    model, processor = load_classifier(str(output))
    files = find_images([str(folder / "test" / "*" / "*.png")])
    assert [prediction.error for prediction in predict_files(model, processor, files)] == [None, None]
