"""Pictures colored by patches, in NumPy alone."""

import numpy as np


# Pictures with fewer pixels are enlarged first, so that the edges of patches fall between pixels.
MIN_PICTURE = 768


def enlarge(picture: np.ndarray) -> np.ndarray:
    """Repeats each pixel of `(h, w, 3)` until the longer side has at least `MIN_PICTURE`."""
    factor = -(-MIN_PICTURE // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def pale(picture: np.ndarray, contrast: float = 0.35, level: float = 165.0) -> np.ndarray:
    """Converts a picture to gray of low contrast, unlike black and white, which are common in images."""
    gray = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    faint = contrast * gray + (1 - contrast) * level
    return np.repeat(faint[..., None], 3, axis=-1).astype(np.uint8)


def upper_limit(values: np.ndarray) -> float:
    """Returns the upper limit of a color map, without outliers, which would darken the rest."""
    numbers = values[np.isfinite(values)]
    high = float(np.quantile(numbers, 0.99))
    return high if high > numbers.min() else float(numbers.max())


def spread(
    values: np.ndarray, size: tuple[int, int], patch_span: tuple[float, float], beyond: int = 0
) -> np.ndarray:
    """Gives each pixel of a picture of `size` (h, w) the value `(R, S)` of its patch.

    Pixels beyond whole patches get `beyond`.
    """
    row, column = (
        ((np.arange(length) + 0.5) / length * span).astype(int)
        for length, span in zip(size, patch_span, strict=True)
    )
    padded = np.pad(values, ((0, 1), (0, 1)), constant_values=beyond)
    return padded[np.minimum(row, values.shape[0])][:, np.minimum(column, values.shape[1])]


def dim_dropped(picture: np.ndarray, kept: np.ndarray, patch_span: tuple[float, float]) -> np.ndarray:
    """Makes `picture` `(h, w, 3)` pale gray where `kept` `(R, S)` is False."""
    return np.where(spread(kept, picture.shape[:2], patch_span)[..., None], picture, pale(picture))


def merged(groups: np.ndarray) -> np.ndarray:
    """Marks patches `(R, S)` whose group (0 or more) in `groups` `(R, S)` has other members."""
    members = np.bincount(groups[groups >= 0], minlength=1)
    return np.append(members > 1, False)[groups]  # -1 finds the appended one


def color_groups(picture: np.ndarray, groups: np.ndarray, patch_span: tuple[float, float]) -> np.ndarray:
    """Gives the patches of each group in `picture` `(h, w, 3)` their mean color.

    A patch that is a group of its own keeps its pixels; patches of no group are pale.

    Args:
        groups: `(R, S)` int64, -1 for no group.
    """
    shown = dim_dropped(picture, groups >= 0, patch_span)
    inside = spread(merged(groups), picture.shape[:2], patch_span)
    group = spread(groups, picture.shape[:2], patch_span, beyond=-1)[inside]
    pixels = np.bincount(group, minlength=1)
    means = [
        np.bincount(group, weights=picture[..., channel][inside], minlength=1) / np.maximum(pixels, 1)
        for channel in range(3)
    ]
    shown[inside] = np.stack(means, axis=-1).round().astype(np.uint8)[group]
    return shown
