"""Animated GIFs of kept patches."""

import numpy as np
import PIL.Image
import pytest

from vit_hf.explanations.animation import STRIP, Tile, tile_side, write_animation


def colourful(height: int, width: int) -> np.ndarray:
    """A picture in which red, green and blue differ everywhere."""
    picture = np.empty((height, width, 3), dtype=np.uint8)
    picture[..., 0] = 220
    picture[..., 1] = np.linspace(0, 100, height)[:, None]
    picture[..., 2] = 10
    return picture


def read(path) -> tuple[list[np.ndarray], list[int]]:
    """The frames `(h, w, 3)` and how long they last in milliseconds."""
    frames, durations = [], []
    with PIL.Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")).astype(int))
            durations.append(image.info["duration"])
        assert image.info["loop"] == 0
    return frames, durations


def is_coloured(pixels: np.ndarray) -> np.ndarray:
    return pixels.max(axis=-1) - pixels.min(axis=-1) > 60


def test_dropped_patches_are_grey_and_kept_ones_as_they_were(tmp_path):
    picture = colourful(60, 90)
    masks = [np.array(mask, dtype=bool) for mask in ([[1, 1, 1], [1, 1, 1]], [[0, 1, 0], [1, 0, 0]])]
    write_animation(
        tmp_path / "a.gif", [Tile(picture, (2.0, 3.0))], [[mask] for mask in masks], ["all", "step 2"]
    )
    frames, durations = read(tmp_path / "a.gif")
    assert len(frames) == 2
    assert durations[1] > durations[0] > 0
    for frame, mask in zip(frames, masks, strict=True):
        shown = frame[:60, :90]
        kept = np.kron(mask, np.ones((30, 30))).astype(bool)
        np.testing.assert_array_equal(is_coloured(shown), kept)
        assert np.abs(shown[kept] - picture[kept]).mean() < 8
    # The captions differ, and are written below.
    assert frames[0].shape[0] == 60 + STRIP
    assert (frames[0][60:] != frames[1][60:]).any()
    assert frames[1][60:].min() < 50 and frames[1][60:].max() > 240
    assert not list(tmp_path.glob("*.part"))


def test_several_pictures_side_by_side(tmp_path):
    tiles = [
        Tile(colourful(40, 40), (1.0, 1.0)),
        Tile(colourful(20, 30), (1.0, 1.0)),
        Tile(colourful(40, 20), (1.0, 1.0)),
    ]
    yes, no = np.ones((1, 1), dtype=bool), np.zeros((1, 1), dtype=bool)
    write_animation(tmp_path / "a.gif", tiles, [[yes, no, yes], [no, yes, no]], ["one", "two"])
    first, second = (is_coloured(frame) for frame in read(tmp_path / "a.gif")[0])
    places = [(slice(0, 40), slice(0, 40)), (slice(0, 20), slice(44, 74)), (slice(44, 84), slice(0, 20))]
    for place, expected in zip(places, (True, False, True), strict=True):
        assert first[place].all() == first[place].any() == expected
        assert second[place].all() == second[place].any() == (not expected)
    assert first.sum() == 40 * 40 + 40 * 20 and second.sum() == 20 * 30


@pytest.mark.parametrize("size", [(8, 3), (3, 90)])
def test_captions_are_not_clipped(tmp_path, size):
    everything = np.ones((1, 1), dtype=bool)
    caption = "step 1234567: 1024 of 1024 patches in 1000 tokens"
    write_animation(tmp_path / "a.gif", [Tile(colourful(*size), (1.0, 1.0))], [[everything]], [caption])
    [frame], _ = read(tmp_path / "a.gif")
    border = np.concatenate((frame[size[0] :, 0], frame[size[0] :, -1], frame[-1], frame[size[0]]))
    assert (border > 240).all()


def test_what_is_beyond_whole_patches_is_never_kept(tmp_path):
    mask = np.ones((2, 2), dtype=bool)
    write_animation(tmp_path / "a.gif", [Tile(colourful(50, 50), (2.5, 2.5))], [[mask]], ["all"])
    [frame], _ = read(tmp_path / "a.gif")
    coloured = is_coloured(frame[:50, :50])
    assert coloured[:40, :40].all() and not coloured[40:].any() and not coloured[:, 40:].any()


@pytest.mark.parametrize("number", [1, 2, 4, 5, 9])
def test_sides_fit(number):
    columns = int(np.ceil(np.sqrt(number)))
    assert 470 <= columns * tile_side(number, 480) + 4 * (columns - 1) <= 480
