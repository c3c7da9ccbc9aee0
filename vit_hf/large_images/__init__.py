"""Images larger than the model, and larger than memory."""

from .sources import ImageSource, open_image


__all__ = ["ImageSource", "open_image"]
