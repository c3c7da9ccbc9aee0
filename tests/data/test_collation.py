import pytest
import torch
from torch.nn import functional

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.data.augmentation import EvaluationExamples, TrainingExamples
from vit_hf.data.collation import ImageCollator
from vit_hf.data.loading import load_image_dataset


PROCESSOR = AdaptiveViTImageProcessor(size={"height": 32, "width": 32}, patch_size=8)


@pytest.fixture
def images(image_folder):
    return load_image_dataset(str(image_folder)).splits["train"]


@pytest.fixture
def batch(images):
    examples = TrainingExamples(images)
    return [examples[index] for index in (0, 3, 8, 5)]


def test_stacks_images_and_labels(batch, images):
    result = ImageCollator(PROCESSOR)(batch)
    assert result.keys() == {"pixel_values", "labels"}
    assert result["pixel_values"].shape == (4, 3, 32, 32)
    assert result["labels"].dtype == torch.int64
    assert result["labels"].tolist() == images.labels[[0, 3, 8, 5]].tolist()


def test_patches(batch):
    processor = AdaptiveViTImageProcessor(do_resize=False, patch_size=8, return_patches=True)
    result = ImageCollator(processor)(batch)
    assert result["pixel_values"].shape == (4, 30, 192)
    assert {"patch_coordinates", "spatial_shapes", "labels"} <= result.keys()


@pytest.mark.parametrize(
    "alphas", [{"mixup_alpha": 0.5}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 0.5, "cutmix_alpha": 1.0}]
)
def test_mixing_is_a_function_of_the_examples(batch, alphas):
    collator = ImageCollator(PROCESSOR, num_labels=3, **alphas)
    plain = ImageCollator(PROCESSOR)(batch)
    state = torch.get_rng_state()
    mixed = collator(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(mixed["pixel_values"], plain["pixel_values"])
    assert mixed["labels"].shape == (4, 3)
    torch.testing.assert_close(mixed["labels"].sum(-1), torch.ones(4))
    torch.rand(5)
    again = collator(batch)
    assert torch.equal(again["pixel_values"], mixed["pixel_values"])
    assert torch.equal(again["labels"], mixed["labels"])


def test_evaluation_is_neither_mixed_nor_smoothed(images):
    examples = EvaluationExamples(images)
    batch = [examples[0], examples[1]]
    collator = ImageCollator(PROCESSOR, num_labels=3, mixup_alpha=1.0, label_smoothing=0.1)
    plain = ImageCollator(PROCESSOR)(batch)
    assert torch.equal(collator(batch)["pixel_values"], plain["pixel_values"])
    assert torch.equal(collator(batch)["labels"], plain["labels"])


def test_smoothed_labels_give_torchs_smoothed_loss(batch):
    smooth = ImageCollator(PROCESSOR, num_labels=5, label_smoothing=0.1)(batch)
    hard = ImageCollator(PROCESSOR)(batch)
    model = AdaptiveViTForImageClassification(tiny_config(problem_type="single_label_classification"))
    outputs = model(**smooth)
    expected = functional.cross_entropy(outputs.logits, hard["labels"], label_smoothing=0.1)
    torch.testing.assert_close(outputs.loss, expected)


def test_refuses_what_cannot_be_mixed():
    with pytest.raises(ValueError, match="are for single-label classification"):
        ImageCollator(PROCESSOR, mixup_alpha=0.5)
    with pytest.raises(ValueError, match="are for single-label classification"):
        ImageCollator(PROCESSOR, label_smoothing=0.1)
    cutting = AdaptiveViTImageProcessor(return_patches=True)
    with pytest.raises(ValueError, match="return_patches cuts them before"):
        ImageCollator(cutting, num_labels=3, cutmix_alpha=0.5)
