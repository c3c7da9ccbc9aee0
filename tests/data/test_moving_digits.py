"""Clips in which one digit moves."""

import numpy as np
import pytest
import torch

from vit_hf.data.digits import digits_of_split, load_digits
from vit_hf.data.moving_digits import MovingDigits, bounce


def test_only_the_labelled_digit_moves():
    clips = MovingDigits("train", 20, num_frames=8, size=96, num_still=3, num_strokes=3, seed=3)
    for index in range(len(clips)):
        row = clips[index]
        assert row["pixel_values"].shape == (8, 1, 96, 96) and 0 <= row["pixel_values"].min() <= 1
        assert row["pixel_values"].max() == pytest.approx(1, abs=0.05)
        assert load_digits().classes[clips.moving[index]] == row["labels"]
        clip = clips.video(index)
        moved = (clip > clip.min(axis=0)).any(axis=0)  # brighter than what is there in every frame
        rows, columns = np.nonzero(moved)
        # 7 steps of at most 3 pixels, and a digit of 28.
        assert 0 < np.ptp(rows) < 28 + 21 and 0 < np.ptp(columns) < 28 + 21


def test_the_same_arguments_give_the_same_clips_and_others_do_not():
    first, again, other, test = (
        MovingDigits(split, 3, 4, 64, 2, 2, seed)
        for split, seed in (("train", 0), ("train", 0), ("train", 1), ("test", 0))
    )
    assert torch.equal(first[1]["pixel_values"], again[1]["pixel_values"])
    assert not torch.equal(first[1]["pixel_values"], other[1]["pixel_values"])
    assert set(test.moving) <= set(digits_of_split("test").ravel())
    assert not set(first.still.ravel()) & set(digits_of_split("test").ravel())


def test_what_moves_turns_round_at_the_edge():
    assert bounce(8.0, 1.0, 5, 10).tolist() == [8, 9, 10, 9, 8]
    assert bounce(1.0, -1.0, 4, 10).tolist() == [1, 0, 1, 2]
    assert bounce(0.0, 2.0, 3, 0).tolist() == [0, 0, 0]


def test_frames_smaller_than_a_digit_are_refused():
    with pytest.raises(ValueError, match="at least 28"):
        MovingDigits("train", 1, size=20)
