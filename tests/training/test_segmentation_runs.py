"""Segmentation runs: finding masks, training, IoU."""

from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from tests.helpers.runs import MODEL
from vit_hf.arguments import DataArguments, ModelArguments, SegmentationArguments
from vit_hf.data.masks import MaskedImages, load_masked_images
from vit_hf.model.image_loading import to_pixels
from vit_hf.training.arguments import RunArguments
from vit_hf.training.segmentation import MeanIoU, Segmentation
from vit_hf.training.task import prepare


GROUPS = (ModelArguments, DataArguments, SegmentationArguments, RunArguments)


@pytest.fixture(scope="session")
def masked_folder(tmp_path_factory):
    """An image folder with ten images of a bright box, and a metadata file that names their masks."""
    folder = tmp_path_factory.mktemp("masked")
    generator = np.random.default_rng(0)
    lines = ["file_name,mask_file_name"]
    for index in range(10):
        pixels = generator.integers(0, 60, (40, 48, 3), dtype=np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        top, left = generator.integers(0, 20, 2)
        pixels[top : top + 16, left : left + 16] += 160
        mask[top : top + 16, left : left + 16] = 1 + index % 2
        mask[0, 0] = 255
        PIL.Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / "masks").mkdir(exist_ok=True)
        PIL.Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
        lines.append(f"{index}.png,masks/{index}.png")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def make_segmentation(masked_folder, tmp_path):
    """A function of `output_dir` and arguments (flat, as on the command line) to a prepared run."""

    def make(output_dir="segmented", **arguments):
        values = {
            "config_overrides": MODEL | {"patch_size": 8, "initializer_range": 0.05},
            "image_size": 32,
            "dataset": str(masked_folder),
            "validation_fraction": 0.3,
            "output_dir": str(tmp_path / output_dir),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "disable_tqdm": True,
            "use_cpu": True,
            **arguments,
        }
        groups = []
        for group in GROUPS:
            names = group.__dataclass_fields__.keys() & values.keys()
            groups.append(group(**{name: values.pop(name) for name in names}))
        assert not values
        *arguments, training = groups
        return prepare(Segmentation(*arguments), training)

    return make


def test_learns_masks(make_segmentation, tmp_path):
    run = make_segmentation(
        binary=True, patch_selector="variance", num_selected_patches=0.5, num_train_epochs=15
    )
    assert "2 classes" in run.describe() and "50.0% of the patches of an image by variance" in run.describe()
    metrics = run.execute()
    assert metrics["eval_mean_iou"] > 0.6 and metrics["eval_iou_foreground"] > 0.5
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "segmented")
    assert model.config.id2label == {0: "background", 1: "foreground"}
    assert model.config.segmentation_decoder == "convolutional"


def test_native_resolution_flips_and_data_loaders_that_select(make_segmentation):
    run = make_segmentation(
        image_size=None,
        native_resolution=True,
        return_patches=True,
        patch_selector="variance",
        num_selected_patches=10,
        horizontal_flip=0.5,
        num_train_epochs=1,
        segmentation_decoder="linear",
    )
    batch = run.trainer.data_collator([run.trainer.train_dataset[0]])
    assert batch["pixel_values"].shape == (1, 10, 192) and batch["labels"].shape == (1, 40, 48)
    metrics = run.execute()
    assert {"eval_iou_0", "eval_iou_1", "eval_iou_2", "eval_overall_accuracy"} <= metrics.keys()


def test_images_and_masks_are_mirrored_together(masked_folder):
    data = load_masked_images(DataArguments(dataset=str(masked_folder), validation_fraction=0.0), False)
    images = data.splits["train"]
    assert data.names == ["0", "1", "2"] and len(images) == 10
    plain = images[3]
    images.horizontal_flip = 1.0
    flipped = images[3]
    assert np.array_equal(plain["mask"][:, ::-1], flipped["mask"])
    assert np.array_equal(np.asarray(plain["image"])[:, ::-1], np.asarray(flipped["image"]))


def test_masks_are_of_upright_images(tmp_path):
    """As they are shown to whoever draws masks, and prepared for the model."""
    picture = PIL.Image.fromarray(np.arange(40 * 48 * 3, dtype=np.uint8).reshape(40, 48, 3))
    exif = picture.getexif()
    exif[0x0112] = 6  # held upright, and stored lying on its side
    picture.save(tmp_path / "image.png", exif=exif)
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(tmp_path / "image.png"))
    PIL.Image.fromarray(np.asarray(upright)[..., 0]).save(tmp_path / "mask.png")
    columns = {name: [str(tmp_path / f"{name}.png")] for name in ("image", "mask")}
    rows = datasets.Dataset.from_dict(columns)
    for name in columns:
        rows = rows.cast_column(name, datasets.Image(decode=False))
    for flip in (0.0, 1.0):
        example = MaskedImages(rows, "image", "mask", horizontal_flip=flip)[0]
        assert np.array_equal(to_pixels(example["image"], True, None)[0], example["mask"])


def test_iou_is_summed_up_over_batches():
    metric = MeanIoU(["a", "b", "c"], ignored=255)
    labels = torch.tensor([[[0, 0, 1, 255]], [[1, 1, 0, 0]]])
    answers = torch.tensor([[[0, 1, 1, 1]], [[1, 0, 0, 0]]])
    logits = torch.nn.functional.one_hot(answers, 3).permute(0, 3, 1, 2).float()
    assert metric(SimpleNamespace(predictions=logits[:1], label_ids=labels[:1]), compute_result=False) == {}
    result = metric(SimpleNamespace(predictions=logits[1:], label_ids=labels[1:]))
    assert result["iou_a"] == pytest.approx(3 / 5) and result["iou_b"] == pytest.approx(2 / 4)
    assert np.isnan(result["iou_c"]) and result["mean_iou"] == pytest.approx(0.55)
    assert result["overall_accuracy"] == pytest.approx(5 / 7)
    assert not metric.confusion.any()  # the next evaluation begins anew


class TestRefuses:
    def test_masks_that_cannot_be_found(self, tmp_path, make_segmentation):
        rows = datasets.Dataset.from_dict({"image": [PIL.Image.new("RGB", (8, 8))]})
        rows = rows.cast_column("image", datasets.Image())
        rows.to_parquet(tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match=r"image_column and label_column.*image"):
            make_segmentation(dataset=str(tmp_path / "rows.parquet"))

    def test_masks_of_three_channels(self, tmp_path, make_segmentation):
        image = PIL.Image.new("RGB", (32, 32))
        rows = datasets.Dataset.from_dict({"image": [image] * 4, "mask": [image] * 4})
        rows = rows.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
        rows.to_parquet(tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match="one channel"):
            make_segmentation(dataset=str(tmp_path / "rows.parquet"))

    def test_a_size_that_masks_cannot_follow(self, make_segmentation):
        with pytest.raises(ValueError, match="not longest_edge"):
            make_segmentation(image_size=None, longest_edge=32, return_patches=True)

    def test_smoothing_of_labels(self, make_segmentation):
        with pytest.raises(ValueError, match="label_smoothing_factor is for classification"):
            make_segmentation(label_smoothing_factor=0.1)
