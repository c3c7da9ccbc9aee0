"""How many axes there are: rows and columns of images, and before them frames of videos or slices of volumes.

Shape legend: `tokens.py`; T frames, t of them in a patch.
"""


def to_pair(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a size that a configuration may give as one number."""
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


def scout_sides(config) -> tuple[int, ...]:
    """Sides of the thumbnail that a scout sees."""
    frames = getattr(config, "scout_num_frames", None) or getattr(config, "num_frames", None)
    return _with_frames(config, frames, config.scout_image_size or config.image_size)


def scorer_sides(config) -> tuple[int, ...]:
    """Sides of the thumbnail that the network of `"policy"` and `"perturbed"` sees, of whole tubelets."""
    frames = native_grid(config)[0] * config.tubelet_size if has_frames(config) else None
    return _with_frames(config, frames, config.scorer_image_size or config.image_size)
