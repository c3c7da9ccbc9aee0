"""How many axes there are: rows and columns of images, and before them frames of videos or slices of volumes.

Shape legend: `tokens.py`; T frames, t of them in a patch. Imports no PyTorch.
"""

from typing import Any


def to_pair(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that a configuration may give as one number."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def has_frames(config) -> bool:
    """Whether a configuration is for videos or volumes."""
    return getattr(config, "num_frames", None) is not None  # Swin has no such field


def _with_frames(config, number: int | None, size: int | list[int] | tuple[int, int]) -> tuple[int, ...]:
    return (number, *to_pair(size)) if has_frames(config) else to_pair(size)


def patch_sides(config) -> tuple[int, ...]:
    """(P, P) pixels of a patch; (t, P, P) with frames."""
    return _with_frames(config, getattr(config, "tubelet_size", None), config.patch_size)


def native_sides(config) -> tuple[int, ...]:
    """(H, W) of the images that a configuration names; (T, H, W) with frames."""
    return _with_frames(config, getattr(config, "num_frames", None), config.image_size)


def native_grid(config) -> tuple[int, ...]:
    """Patches along each axis of these, (R, S) or (T / t, R, S)."""
    return tuple(side // patch for side, patch in zip(native_sides(config), patch_sides(config), strict=True))


def thumbnail_sides(config, size: int | list[int] | tuple[int, ...] | bool | None = None) -> tuple[int, ...]:
    """Sides of a thumbnail of an image or video.

    Args:
        config: of the model.
        size: pixels of a side, (height, width), or of a video (frames, height, width); None or True for the
            native ones.
    """
    if size is None or size is True:
        return native_sides(config)
    if not isinstance(size, int) and len(size) == 3:
        return tuple(int(side) for side in size)
    return _with_frames(config, getattr(config, "num_frames", None), size)


def check_thumbnail(config, name: str, size: Any, least: tuple[int, ...]) -> None:
    """Checks the size of a thumbnail.

    Args:
        config: of the model.
        name: of the option, for errors.
        size: value of the option.
        least: sides that the thumbnail must have at least.

    Raises:
        ValueError: if it has the wrong number of sides, or is too small.
    """
    legal = "a number of pixels or a pair (height, width)"
    if has_frames(config):
        legal += ", or (frames, height, width)"
    if isinstance(size, list | tuple) and len(size) != 2 and not (has_frames(config) and len(size) == 3):
        raise ValueError(f"{name}={list(size)} must be {legal}.")
    sides = thumbnail_sides(config, size)
    if min(sides) < 1:
        raise ValueError(f"{name}={size} must be at least one pixel a side.")
    if any(side < needed for side, needed in zip(sides, least, strict=True)):
        raise ValueError(
            f"{name}={'image_size' if size is None else size} gives a thumbnail of {list(sides)}, and it must have at "
            f"least {list(least)}: {legal}."
        )
