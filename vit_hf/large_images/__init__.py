"""Images larger than the model, and larger than memory."""

from .sources import ImageSource, open_image
from .streaming import predict_streaming, select_streaming


__all__ = ["ImageSource", "open_image", "predict_streaming", "select_streaming"]
