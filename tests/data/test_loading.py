import datasets
import numpy as np
import pytest

from tests.helpers.runs import CLASSES, write_images
from vit_hf.data.loading import hold_out, load_image_dataset


def test_folder_of_classes_has_a_validation_split_held_out(image_folder):
    data = load_image_dataset(str(image_folder), validation_fraction=0.25)
    assert data.id2label == dict(enumerate(CLASSES))
    assert data.label2id == {name: index for index, name in enumerate(CLASSES)}
    assert data.problem_type == "single_label_classification"
    # also of the class whose folder is named like a split
    assert np.bincount(data.splits["train"].labels).tolist() == [3, 3, 3]
    assert np.bincount(data.splits["validation"].labels).tolist() == [1, 1, 1]
    assert data.splits["train"].read(0).size == (48, 40)


def test_what_is_held_out_depends_on_the_seed_alone(image_folder):
    def held_out(seed):
        images = load_image_dataset(str(image_folder), seed=seed).splits["validation"]
        return [images.rows[index]["image"]["path"] for index in range(len(images))]

    assert held_out(0) == held_out(0)
    assert any(held_out(0) != held_out(seed) for seed in range(1, 5))


def test_nothing_held_out(image_folder):
    assert load_image_dataset(str(image_folder), validation_fraction=0).splits.keys() == {"train"}
    with pytest.raises(ValueError, match="validation_fraction is 1"):
        load_image_dataset(str(image_folder), validation_fraction=1)


def test_folders_of_splits(tmp_path):
    for split, number in {"train": 3, "val": 2, "test": 1}.items():
        for name in ("a", "b"):
            write_images(tmp_path / split / name, number)
    data = load_image_dataset(str(tmp_path))
    assert {name: len(images) for name, images in data.splits.items()} == {
        "train": 6,
        "validation": 4,
        "test": 2,
    }


def test_folder_with_metadata(tmp_path):
    write_images(tmp_path, 4)
    lines = ["file_name,height", *(f"{index}.png,{index / 2}" for index in range(4))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    data = load_image_dataset(str(tmp_path), validation_fraction=0.5)
    assert (data.problem_type, data.num_labels, data.id2label) == ("regression", 1, {})
    assert len(data.splits["validation"]) == 2


@pytest.fixture
def table(image_folder):
    files = sorted(map(str, image_folder.rglob("*.png")))
    rows = {"photo": files, "kind": ["x", "y"] * 6, "height": [float(number) for number in range(12)]}
    return datasets.Dataset.from_dict(rows).cast_column("photo", datasets.Image())


def test_parquet_and_save_to_disk(table, tmp_path):
    table.to_parquet(tmp_path / "data" / "train.parquet")
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table, dev=table.select([0, 1])).save_to_disk(tmp_path / "two")
    for path in ("data/train.parquet", "data", "one", "two"):
        data = load_image_dataset(str(tmp_path / path), label_column="kind")
        assert data.id2label == {0: "x", 1: "y"}
        assert data.splits["validation"].read(0).size == (48, 40)
    assert len(data.splits["validation"]) == 2


def test_columns(table, tmp_path):
    path = str(tmp_path / "train.parquet")
    table.map(lambda row: {"thumbnail": row["photo"]}).to_parquet(path)
    with pytest.raises(ValueError, match="several columns hold images; name the right one of photo, kind"):
        load_image_dataset(path)
    with pytest.raises(ValueError, match="no image column 'foto'; the data have photo, kind"):
        load_image_dataset(path, image_column="foto")
    with pytest.raises(ValueError, match="name the labels with label_column; the data have kind, height"):
        load_image_dataset(path, image_column="photo")
    with pytest.raises(ValueError, match="no label column 'sort'"):
        load_image_dataset(path, image_column="photo", label_column="sort")
    with pytest.raises(TypeError, match="holds no labels"):
        load_image_dataset(path, image_column="photo", label_column="thumbnail")
    assert load_image_dataset(path, image_column="photo", label_column="height").problem_type == "regression"
    table.remove_columns(["photo"]).to_parquet(path)
    with pytest.raises(ValueError, match="no column holds images"):
        load_image_dataset(path)


def test_a_test_split_without_labels_is_left_out(table, tmp_path):
    table = table.select_columns(["photo", "kind"])
    unlabelled = table.remove_columns("kind").add_column(
        "kind", [None] * 12, feature=datasets.Value("string")
    )
    datasets.DatasetDict(train=table, test=unlabelled).save_to_disk(tmp_path / "data")
    assert load_image_dataset(str(tmp_path / "data")).splits.keys() == {"train", "validation"}


@pytest.mark.parametrize(
    "task, problem_type",
    [("majority", "single_label_classification"), ("multi", "multi_label_classification")],
)
def test_megapixel_digits(task, problem_type):
    options = {
        "size": 64,
        "task": task,
        "noise": None,
        "num_train": 30,
        "num_test": 4,
        "digit_size": 12,
        "seed": 3,
    }
    data = load_image_dataset("megapixel_digits", options=options)
    assert data.problem_type == problem_type
    assert data.num_labels == 10
    assert len(data.splits["test"]) == 4
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 30
    assert data.splits["train"].read(0).size == (64, 64)


def test_damaged_files_are_named_or_left_out(tmp_path):
    for name in ("a", "b"):
        write_images(tmp_path / name, 3)
    (tmp_path / "a" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a/0\.png.*set skip_corrupt"):
        load_image_dataset(str(tmp_path))
    truncated = tmp_path / "b" / "1.png"
    truncated.write_bytes(truncated.read_bytes()[:500])
    data = load_image_dataset(str(tmp_path), skip_corrupt=True, validation_fraction=0)
    assert len(data.splits["train"]) == 4
    assert [name in reason for name, reason in zip(("0.png", "1.png"), data.skipped, strict=True)] == [
        True,
        True,
    ]
    (tmp_path / "a" / "0.png").unlink()
    # Too deep for the check, which reads headers; it is named when it is read.
    data = load_image_dataset(str(tmp_path), validation_fraction=0)
    with pytest.raises(ValueError, match=r"b/1\.png"):
        [data.splits["train"].read(index) for index in range(5)]


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        load_image_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="has no images in it"):
        load_image_dataset(str(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="is not a data set; single files may end in"):
        load_image_dataset(str(tmp_path / "notes.txt"))
    write_images(tmp_path / "only", 2)
    with pytest.raises(ValueError, match="put each class in a folder of its own"):
        load_image_dataset(str(tmp_path))


def test_no_rows(tmp_path):
    datasets.Dataset.from_dict({"image": [], "label": []}).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"empty\.parquet has no rows"):
        load_image_dataset(str(tmp_path / "empty.parquet"))
    with pytest.raises(ValueError, match="the test split of megapixel_digits has no rows"):
        load_image_dataset("megapixel_digits", options={"num_train": 20, "num_test": 0})


def test_strange_splits(table, tmp_path):
    datasets.DatasetDict(first=table).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="has the splits first; name them train, validation or test"):
        load_image_dataset(str(tmp_path / "data"))


def test_hold_out_spares_lone_images():
    labels = np.array([0, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    kept, held_out = hold_out(labels, 0.2, seed=0)
    assert sorted([*kept, *held_out]) == list(range(13))
    assert np.bincount(labels[held_out], minlength=3).tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="no class has two images"):
        hold_out(np.array([0, 1, 2]), 0.2, seed=0)


def test_hold_out_of_values():
    kept, held_out = hold_out(np.zeros((10, 3), np.float32), 0.2, seed=0)
    assert (len(kept), len(held_out)) == (8, 2)
