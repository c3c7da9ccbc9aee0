"""`datasets` of every kind through the image processor and Trainer."""

import datasets
import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.helpers.models import tiny_config
from tests.helpers.runs import write_images
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor


CLASSES = ["bird", "cat", "dog"]
SOURCES = ["imagefolder", "parquet", "imagefolder, streamed", "parquet, streamed"]
PROCESSORS = {
    "whole images": {"size": {"height": 32, "width": 32}},
    "kept patches": {
        "do_resize": False,
        "return_patches": True,
        "patch_size": 8,
        "patch_selector": "variance",
        "num_selected_patches": 6,
    },
}


def load(source: str, folder, parquet):
    kind, _, streamed = source.partition(", ")
    files = {"data_dir": str(folder)} if kind == "imagefolder" else {"data_files": str(parquet)}
    return datasets.load_dataset(kind, split="train", streaming=bool(streamed), **files)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights after some steps, by source and processor."""
    image_folder = tmp_path_factory.mktemp("images")
    for index, name in enumerate(CLASSES):
        write_images(image_folder / name, 4, seed=index)
    parquet = tmp_path_factory.mktemp("parquet") / "train.parquet"
    datasets.load_dataset("imagefolder", data_dir=str(image_folder), split="train").to_parquet(parquet)

    def train(source: str, processing: dict) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = AdaptiveViTForImageClassification(tiny_config(num_labels=len(CLASSES)))
        processor = AdaptiveViTImageProcessor(**processing)

        def prepare(rows):
            return {**processor(rows["image"], return_tensors="pt"), "labels": rows["label"]}

        dataset = load(source, image_folder, parquet)
        assert dataset.features["label"].names == CLASSES
        if isinstance(dataset, datasets.IterableDataset):
            dataset = dataset.map(prepare, batched=True, batch_size=4, remove_columns=["image", "label"])
        else:
            dataset = dataset.with_transform(prepare)
        args = TrainingArguments(
            str(tmp_path_factory.mktemp("run")),
            max_steps=5,
            per_device_train_batch_size=4,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model, args, train_dataset=dataset)
        assert trainer.train().global_step == 5
        return model.state_dict()

    return {
        (source, name): train(source, processing)
        for source in SOURCES
        for name, processing in PROCESSORS.items()
    }


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("source", SOURCES[1:])
def test_trains_as_from_a_folder(trained, source, processor):
    """The same images in the same order make the same weights, wherever they come from."""
    expected = trained["imagefolder", processor]
    for name, value in trained[source, processor].items():
        torch.testing.assert_close(value, expected[name], msg=name)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_training_did_something(trained, processor):
    torch.manual_seed(0)
    fresh = AdaptiveViTForImageClassification(tiny_config(num_labels=len(CLASSES))).state_dict()
    after = trained["imagefolder", processor]
    assert not torch.equal(after["classifier.weight"], fresh["classifier.weight"])
