"""Trainer on images of mixed sizes that are cut in the workers."""

import datasets
import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.helpers.models import tiny_config
from tests.helpers.runs import write_images
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor, PatchCollator


SIZES = [(40, 48), (160, 200), (100, 77), (16, 24)]
LARGE = [(1024, 1024), (300, 777), (40, 48)]


def processor(**options) -> AdaptiveViTImageProcessor:
    return AdaptiveViTImageProcessor(do_resize=False, patch_size=8, return_patches=True, **options)


def example(size: tuple[int, int], batched: bool = True, **options) -> dict:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(sum(size)))
    features = processor(do_rescale=False, **options)(image, return_tensors="pt")
    return {key: value if batched else value[0] for key, value in features.items()}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patch_selector": "variance", "num_selected_patches": 0.1},
        {"patch_selector": "variance", "num_selected_patches": 20},
    ],
    ids=["all", "share", "number"],
)
def test_images_in_a_batch_answer_as_they_do_alone(options, batched):
    model = AdaptiveViTForImageClassification(tiny_config()).eval()
    examples = [example(size, batched, **options) | {"label": index} for index, size in enumerate(SIZES)]
    batch = PatchCollator()(examples)
    assert batch.pop("labels").tolist() == [0, 1, 2, 3]
    counts = [int(one["pixel_attention_mask"].sum()) for one in examples]
    assert batch["pixel_attention_mask"].sum(1).tolist() == counts
    with torch.no_grad():
        logits = model(**batch).logits
        for index, size in enumerate(SIZES):
            alone = model(**example(size, **options)).logits[0]
            torch.testing.assert_close(logits[index], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "examples, message",
    [
        ([{"pixel_values": torch.rand(3, 8, 8)}], "return_patches=True"),
        (
            [example((16, 16)), {**example((16, 16)), "pixel_values": torch.rand(1, 4, 300)}],
            "different sizes",
        ),
        ([{**example((16, 16)), "pixel_values": torch.rand(1, 3, 8, 8)}], "shape"),
    ],
)
def test_what_cannot_be_stacked_is_refused(examples, message):
    with pytest.raises(ValueError, match=message):
        PatchCollator()(examples)


def test_trainer_on_a_folder_of_mixed_sizes(tmp_path):
    for name in ("a", "b"):
        for index, size in enumerate(LARGE):
            write_images(tmp_path / "images" / name / str(index), 1, seed=index, size=size)
    dataset = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "images"), split="train", drop_labels=True
    )
    dataset = dataset.add_column("label", [0, 1] * 3)
    prepare = processor(patch_selector="variance", num_selected_patches=0.1)
    seen = []

    class Recording(PatchCollator):
        def __call__(self, examples):
            seen.append(torch.utils.data.get_worker_info() is not None)
            return super().__call__(examples) | {"in_worker": torch.tensor(seen[-1])}

    def watch(model, args, kwargs):
        assert kwargs.pop("in_worker")
        assert kwargs["pixel_values"].ndim == 3
        return args, kwargs

    # One by one: nothing but the collator makes them one batch.
    rows = [dict(row) for row in dataset]

    class Prepared(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            row = rows[index]
            return {**prepare(row["image"], return_tensors="pt"), "label": row["label"]}

    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=3,
        dataloader_num_workers=2,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        learning_rate=1e-2,
    )
    model = AdaptiveViTForImageClassification(tiny_config(num_labels=2, initializer_range=0.02))
    model.register_forward_pre_hook(watch, with_kwargs=True)
    before = model.classifier.weight.detach().clone()
    trainer = Trainer(model, arguments, train_dataset=Prepared(), data_collator=Recording())
    assert trainer.train().global_step == 3
    assert not torch.equal(before, model.classifier.weight)
