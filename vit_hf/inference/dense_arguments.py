"""Options of the `predict` command for segmentation models and detectors; read without torch."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class DenseArguments:
    """How masks and boxes are predicted, and what is written."""

    _argument_group_name = "masks and boxes"

    halo: int = field(
        default=0, metadata={"help": "pixels at each inner side of a tile that are computed and thrown away"}
    )
    scales: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={
            "help": "factors that images are resized by, all in one run, such as 1 0.5 for large objects too"
        },
    )
    format: list[str] | None = field(
        default=None,
        metadata={
            "help": "files to write into the folder output; of masks tif, npy, zarr, geojson, picture "
            "(default: tif picture), of objects coco, geojson, picture (default: all three)"
        },
    )
    threshold: float = field(default=0.5, metadata={"help": "least score of an object"})
    merging: str = field(
        default="match",
        metadata={
            "help": "how objects that several tiles found become one",
            "choices": ("match", "nms", "greedy"),
        },
    )
    class_wise: bool = field(default=True, metadata={"help": "merge only objects of one class"})
    tolerance: float = field(
        default=1.0, metadata={"help": "outlines in GeoJSON are simplified by at most this many pixels"}
    )
    tile_selector: str | None = field(
        default=None,
        metadata={"help": "pixel scorer that selects tiles, such as variance; the others are background"},
    )
    num_selected_tiles: float | str | None = field(
        default=None,
        metadata={"help": "number (98) or fraction (0.25) of the tiles that tile_selector keeps"},
    )
    nodata: int | None = field(
        default=None, metadata={"help": "value in 0..255 of all channels of pixels without data"}
    )
    universal: Literal["objects", "masks"] = field(
        default="objects",
        metadata={
            "help": "output of models that can do both, such as Mask2Former: objects, or masks of classes"
        },
    )
