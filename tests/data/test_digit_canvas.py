import hashlib
import pickle
import subprocess
import sys
import tracemalloc
from collections import Counter

import datasets
import numpy as np
import pytest

import vit_hf
from vit_hf.data import digits
from vit_hf.data.digits import CanvasRecipe, DigitCanvas, load_digits, render
from vit_hf.data.megapixel_digits import megapixel_digits


def recipes(dataset):
    return [
        CanvasRecipe.from_bytes(row["bytes"]) for row in dataset.with_format("arrow")[:]["image"].to_pylist()
    ]


def pixels(dataset):
    return [np.asarray(image) for image in dataset["image"]]


def fingerprint(dataset):
    return hashlib.sha256(b"".join(image.tobytes() for image in pixels(dataset))).hexdigest()


@pytest.fixture(scope="module")
def small():
    return megapixel_digits(160, num_train=12, num_test=6)


@pytest.fixture
def renders(monkeypatch):
    """Counts the canvases rendered."""
    seen = []

    def counted(recipe):
        seen.append(recipe)
        return render(recipe)

    monkeypatch.setattr(digits, "render", counted)
    return seen


def test_only_reading_images_renders(small, renders):
    train = small["train"].shuffle(seed=0).select(range(8))
    assert (
        len(train["label"][:]) == 8
        and train["boxes"][0]
        and train.select_columns(["label", "digits", "boxes"])[3]["digits"]
    )
    assert (
        train.map(lambda row: {"area": len(row["boxes"])}).filter(bool, input_columns="boxes").num_rows == 8
    )
    assert not renders
    assert train[0]["image"].size == (160, 160)
    assert len(renders) == 1
    assert train["image"][1].size == (160, 160)
    assert len(renders) == 2


def test_a_thousand_images_of_nine_megapixels_fit_in_five_megabytes():
    load_digits()
    tracemalloc.start()
    train = megapixel_digits(3000, num_train=1000, num_test=0)["train"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert train.data.nbytes < 5e6 and peak < 20e6
    assert train[999]["image"].size == (3000, 3000)


def test_with_transform_gets_rendered_images(small):
    def transform(batch):
        assert set(batch) == {"image", "label", "digits", "boxes"}
        return {
            "pixel_values": [np.asarray(image, np.float32) / 255 for image in batch["image"]],
            "labels": batch["label"],
        }

    train = small["train"].with_transform(transform)
    assert (train[2]["pixel_values"] == pixels(small["train"])[2] / np.float32(255)).all()
    assert train[2]["labels"] == small["train"][2]["label"]
    assert len(train[3:7]["pixel_values"]) == 4
    assert (train.shuffle(seed=1).select([0])[0]["pixel_values"] > 0).any()


def test_rearranged_rows_keep_their_images(small):
    images = pixels(small["train"])
    assert (pixels(small["train"].select([7, 2]))[1] == images[2]).all()
    order = small["train"].add_column("index", list(range(12))).shuffle(seed=4)
    halves = order.train_test_split(test_size=0.5, seed=0)
    joined = datasets.concatenate_datasets([halves["test"], halves["train"]])
    assert sorted(joined["index"]) == list(range(12))
    assert all((np.asarray(row["image"]) == images[row["index"]]).all() for row in joined)
    assert all(
        (np.asarray(row["image"]) == images[row["index"]]).all() for row in order.to_iterable_dataset()
    )


def test_different_canvases_can_be_concatenated(small):
    other = megapixel_digits((96, 240), noise="bezier", num_train=2, num_test=0, num_digits=3)["train"]
    joined = datasets.concatenate_datasets([small["train"], small["test"], other])
    assert [joined[i]["image"].size for i in (0, 12, 18)] == [(160, 160), (160, 160), (240, 96)]


def test_map_may_return_the_image_or_another(small):
    def rows_with(function, **kwargs):
        return small["train"].map(function, **kwargs)

    same = rows_with(lambda row: row | {"copies": Counter(row["digits"]).most_common()[0][1]})
    assert set(same["copies"]) <= {3, 4, 5} and fingerprint(same) == fingerprint(small["train"])
    halved = rows_with(lambda row: {"image": row["image"].reduce(2)})
    assert halved[0]["image"].size == (80, 80)
    assert (np.asarray(halved[5]["image"]) == np.asarray(small["train"][5]["image"].reduce(2))).all()
    batched = rows_with(
        lambda rows: {"mean": [np.asarray(i).mean() for i in rows["image"]]}, batched=True, batch_size=5
    )
    assert batched["mean"][:] == [image.mean() for image in pixels(small["train"])]
    assert fingerprint(batched) == fingerprint(small["train"])


def test_saved_and_loaded(small, tmp_path):
    small.save_to_disk(tmp_path / "digits")
    loaded = datasets.load_from_disk(tmp_path / "digits")
    assert isinstance(loaded["train"].features["image"], DigitCanvas)
    assert {split: fingerprint(rows) for split, rows in loaded.items()} == {
        split: fingerprint(rows) for split, rows in small.items()
    }
    small["test"].to_parquet(tmp_path / "test.parquet")
    parquet = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "test.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert fingerprint(parquet) == fingerprint(small["test"])


def test_formats_and_modes(small):
    tensors = small["train"].with_format("torch")[:2]["image"]
    assert tuple(tensors.shape) == (2, 1, 160, 160)
    assert (tensors[1, 0].numpy() == pixels(small["train"])[1]).all()
    rgb = small["train"].cast_column("image", DigitCanvas(mode="RGB"))[1]["image"]
    assert rgb.mode == "RGB" and (np.asarray(rgb)[..., 2] == pixels(small["train"])[1]).all()
    stored = small["train"].cast_column("image", DigitCanvas(decode=False))[0]["image"]["bytes"]
    assert CanvasRecipe.from_bytes(stored) == recipes(small["train"])[0]


def test_workers_of_a_data_loader(small):
    from torch.utils.data import DataLoader

    train = small["train"].with_format("torch", columns=["image", "label"])
    batches = list(DataLoader(train, batch_size=4, num_workers=2))
    images = np.concatenate([batch["image"].numpy() for batch in batches])
    assert (images[:, 0] == np.stack(pixels(small["train"]))).all()
    assert (
        np.concatenate([batch["label"].numpy() for batch in batches]).tolist() == small["train"]["label"][:]
    )


def test_recipes_written_by_hand(renders):
    recipe = CanvasRecipe(40, 60, [0], [[10, 5, 38, 33]], None, 0, 0, 0)
    rows = datasets.Dataset.from_dict(
        {"image": [recipe]}, features=datasets.Features({"image": DigitCanvas()})
    )
    assert not renders
    assert (np.asarray(rows[0]["image"])[5:33, 10:38] == load_digits().images[0]).all()


def test_another_process_sees_the_same_images(small):
    """Also: a pickled data set brings its feature along, which is how it reaches spawned workers."""
    code = (
        "import hashlib, pickle, sys, types\n"
        "import numpy as np\n"
        # The models, which the data do without, take seconds to import.
        "sys.modules['vit_hf'] = package = types.ModuleType('vit_hf')\n"
        f"package.__path__ = {list(vit_hf.__path__)}\n"
        "dataset = pickle.load(sys.stdin.buffer)\n"
        "from vit_hf.data.megapixel_digits import megapixel_digits\n"
        "for rows in (dataset, megapixel_digits(160, num_train=5, num_test=6)['test']):\n"
        "    print(hashlib.sha256(b''.join(np.asarray(i).tobytes() for i in rows['image'])).hexdigest())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(small["test"]), capture_output=True, check=True
    )
    assert run.stdout.decode().split() == [fingerprint(small["test"])] * 2
