import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vit_hf.arguments import AugmentationArguments
from vit_hf.data.augmentation import EvaluationExamples, TrainingExamples, make_augmentation, seeded
from vit_hf.data.loading import load_image_dataset


STRONG = AugmentationArguments(random_crop="resized", horizontal_flip=0.5, vertical_flip=0.5, rand_augment=9)


@pytest.fixture
def images(image_folder):
    return load_image_dataset(str(image_folder)).splits["train"]


@pytest.fixture
def examples(images):
    return TrainingExamples(images, make_augmentation(STRONG, (24, 32)), seed=7)


def test_an_example_is_a_function_of_seed_epoch_and_index(images, examples):
    first = examples[0]["image"]
    assert first.shape == (3, 24, 32)
    assert first.dtype == torch.uint8
    torch.rand(3)
    examples[1]
    assert torch.equal(examples[0]["image"], first)

    examples.set_epoch(1)
    assert not torch.equal(examples[0]["image"], first)
    examples.set_epoch(0)
    assert torch.equal(examples[0]["image"], first)
    other = TrainingExamples(images, examples.augment, seed=8)
    assert not torch.equal(other[0]["image"], first)
    assert (
        other[0]["augmentation_seed"] != examples[0]["augmentation_seed"] != examples[1]["augmentation_seed"]
    )


def test_global_random_states_are_left_alone(examples):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    examples[0]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_see_the_epoch_and_draw_the_same(examples, persistent):
    loader = DataLoader(examples, batch_size=None, num_workers=2, persistent_workers=persistent)
    for epoch in (0, 3):
        examples.set_epoch(epoch)
        for index, example in enumerate(loader):
            assert torch.equal(example["image"], examples[index]["image"])


def test_each_example_draws_anew(images):
    flip = make_augmentation(AugmentationArguments(horizontal_flip=0.5), None)
    plain = EvaluationExamples(images)
    flipped = set()
    for epoch in range(8):
        examples = TrainingExamples(images, flip)
        examples.set_epoch(epoch)
        for index in range(len(examples)):
            image, original = examples[index]["image"], np.array(plain[index]["image"]).transpose(2, 0, 1)
            is_flipped = not np.array_equal(image, original)
            assert not is_flipped or np.array_equal(image, original[..., ::-1])
            flipped.add((index, is_flipped))
    assert len(flipped) == 2 * len(images)


def test_without_augmentation_images_stay_as_they_are(images):
    assert make_augmentation(AugmentationArguments(), (32, 32)) is None
    example = TrainingExamples(images)[2]
    assert np.array_equal(example["image"], images.read(2))
    assert example["labels"] == images.labels[2]


def test_plain_crops_are_of_one_size_even_of_smaller_images(images):
    crop = make_augmentation(AugmentationArguments(random_crop="plain", crop_size=44), None)
    assert TrainingExamples(images, crop)[0]["image"].shape == (3, 44, 44)  # of 40 x 48


def test_seeded_depends_on_all_that_it_is_given():
    def draw(*entropy):
        with seeded(*entropy):
            return torch.rand(1).item()

    assert draw(1, 2) == draw(1, 2)
    assert len({draw(1, 2), draw(2, 1), draw(1, 2, 0, 1), draw(1), draw(3)}) == 5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"random_crop": "plain"}, "needs crop_size, in pixels; it is None"),
        ({"crop_scale": 0.0}, "crop_scale is 0.0"),
        ({"horizontal_flip": 1.5}, "horizontal_flip is 1.5"),
        ({"rand_augment": 31}, "rand_augment is 31"),
        ({"mixup_alpha": -1.0}, "mixup_alpha is -1.0"),
    ],
)
def test_refuses_nonsense(options, message):
    with pytest.raises(ValueError, match=message):
        AugmentationArguments(**options)


def test_resized_crops_need_a_size():
    with pytest.raises(ValueError, match="use random_crop='plain'"):
        make_augmentation(STRONG, None)
