"""To what size an image is resized."""

import math

from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import SizeDict, get_image_size_for_max_height_width


def target_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """(height, width) that an image gets by an option `size`, as transformers' backends have it.

    A longest edge alone is a cap.
    """
    if size.longest_edge and not size.shortest_edge:
        scale = min(1, size.longest_edge / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))
    if size.shortest_edge and size.longest_edge:
        return tuple(get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge))
    if size.shortest_edge:
        longer = int(size.shortest_edge * max(height, width) / min(height, width))
        return (longer, size.shortest_edge) if height > width else (size.shortest_edge, longer)
    if size.max_height and size.max_width:
        return get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
    return size.height, size.width


def size_for_patches(
    height: int, width: int, patch_size: tuple[int, int], max_num_patches: int
) -> tuple[int, int]:
    """(height, width) in whole patches, at most so many, of about the aspect of an image, as large as that allows.

    Found by halving, as transformers' `Siglip2ImageProcessor` does, to the same precision, so that sizes agree.
    """

    def patches(scale: float) -> tuple[int, int]:
        rows, columns = (
            max(1, math.ceil(side * scale / patch))
            for side, patch in zip((height, width), patch_size, strict=True)
        )
        return rows, columns

    fits, too_large = 1e-6, 100.0
    while too_large - fits >= 1e-5:
        middle = (fits + too_large) / 2
        if math.prod(patches(middle)) <= max_num_patches:
            fits = middle
        else:
            too_large = middle
    rows, columns = patches(fits)
    return rows * patch_size[0], columns * patch_size[1]
