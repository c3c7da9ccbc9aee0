"""Rows that come from top to bottom: each is decoded once, and few are kept."""

import numpy as np
import pytest

from vit_hf.readers.photos import RowStream


ROWS = np.random.default_rng(0).integers(0, 256, (100, 20, 3), dtype=np.uint8)


class Decoder:
    def __init__(self, rows=7, fails_at=None):
        self.rows, self.fails_at, self.decoded = rows, fails_at, 0

    def __call__(self):
        for top in range(0, len(ROWS), self.rows):
            if self.fails_at is not None and top >= self.fails_at:
                raise OSError("damaged")
            self.decoded += 1
            yield ROWS[top : top + self.rows]


def stream_of(decoder):
    """Keeps thirty rows."""
    return RowStream(decoder, cache_bytes=30 * 20 * 3)


def test_bands_from_top_to_bottom_are_one_pass():
    stream = stream_of(Decoder())
    for top in range(0, 100, 10):
        for left in (10, 0, 15, 5):
            assert np.array_equal(stream.read(top, left, 10, 5), ROWS[top : top + 10, left : left + 5])
            assert stream._kept_bytes <= (30 + 7) * 20 * 3
    assert stream.passes == 1


def test_small_steps_back_are_kept_and_large_ones_start_again():
    decoder = Decoder()
    stream = stream_of(decoder)
    stream.read(60, 0, 10, 20)
    stream.read(48, 0, 10, 20)
    assert stream.passes == 1
    assert np.array_equal(stream.read(3, 4, 5, 6), ROWS[3:8, 4:10])
    assert stream.passes == 2
    # No further than asked for.
    assert decoder.decoded == 10 + 2


def test_a_region_larger_than_the_cache():
    stream = stream_of(Decoder())
    for _ in range(2):
        for left in (0, 10):
            assert np.array_equal(stream.read(20, left, 70, 10), ROWS[20:90, left : left + 10])
    assert stream.passes == 1


def test_any_order():
    stream = stream_of(Decoder(rows=100))
    for top, left in np.random.default_rng(0).integers(0, 10, (50, 2)):
        assert np.array_equal(stream.read(top * 9, left, 9, 9), ROWS[top * 9 : top * 9 + 9, left : left + 9])


def test_damage():
    stream = stream_of(Decoder(fails_at=50))
    for _ in range(2):
        with pytest.raises(OSError, match="damaged"):
            stream.read(50, 0, 10, 10)
        assert np.array_equal(stream.read(30, 0, 10, 10), ROWS[30:40, :10])
    with pytest.raises(ValueError, match="ends after row 100"):
        stream_of(Decoder()).read(99, 0, 2, 1)
