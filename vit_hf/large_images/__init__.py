"""Images larger than the model, and larger than memory."""

from .aggregation import TILE_AGGREGATIONS, AggregationOptions, aggregate_tiles
from .sources import ImageSource, open_image
from .streamed_patches import StreamedPatches
from .streaming import StreamedSelection, predict_streaming, select_streaming, stream_images
from .streaming_collation import StreamingCollator
from .tile_grid import TileGrid
from .tiles import TiledPrediction, feature_map_tiled, predict_tiled


__all__ = [
    "TILE_AGGREGATIONS",
    "AggregationOptions",
    "ImageSource",
    "StreamedPatches",
    "StreamedSelection",
    "StreamingCollator",
    "TileGrid",
    "TiledPrediction",
    "aggregate_tiles",
    "feature_map_tiled",
    "open_image",
    "predict_streaming",
    "predict_tiled",
    "select_streaming",
    "stream_images",
]
