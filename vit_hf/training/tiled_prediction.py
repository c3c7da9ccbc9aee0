"""Labels for image files of any size, tile by tile."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..explain import unique_names
from ..large_images import TILE_AGGREGATIONS, open_image, predict_tiled
from ..large_images.aggregation import check_aggregation, problem_type_of
from ..large_images.tile_grid import check_overlap, check_tile
from .prediction import Prediction, describe


@dataclass(kw_only=True)
class TilingArguments:
    """Whether images are cut into tiles, and what is made of them."""

    _argument_group_name = "tiles"

    tile: int | None = field(
        default=None,
        metadata={
            "help": "side in pixels of the tiles that images are cut into at full resolution; default: images are seen "
            "whole"
        },
    )
    overlap: float = field(default=0.25, metadata={"help": "share of a tile that the next one covers again"})
    aggregate: str = field(
        default="mean",
        metadata={"help": "how tiles make the answer of the image", "choices": tuple(TILE_AGGREGATIONS)},
    )
    heat_maps: str | None = field(
        default=None,
        metadata={"help": "folder for pictures of where in each image its label is, <name>_heat_map.png"},
    )

    def __post_init__(self):
        check_overlap(self.overlap)
        if self.tile is not None:
            check_tile(self.tile)
        elif self.heat_maps is not None:
            raise ValueError("heat_maps are made of tiles: set tile, such as to 224")


def predict_files_tiled(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    files: list[str],
    tiling: TilingArguments,
    top_k: int = 5,
    with_patches: bool = False,
    batch_size: int = 16,
) -> Iterator[Prediction]:
    """Classify image files by their tiles, in order; answers have `num_tiles` beside what `predict_files` tells.

    Args:
        model: any image classifier of transformers, on the device to use.
        image_processor: the one that goes with it.
        files: to read.
        tiling: with `tile` set.
        top_k: how many labels to tell.
        with_patches: refused, as every tile has patches of its own.
        batch_size: tiles at a time.

    Raises:
        ValueError: for `with_patches`, or an aggregation that the model's problem does not have.
    """
    if with_patches:
        raise ValueError("with_patches is about images seen whole: leave it out, or leave out tile")
    check_aggregation(tiling.aggregate, problem_type_of(model.config))
    return _predictions(model, image_processor, files, tiling, top_k, batch_size)


def _predictions(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    files: list[str],
    tiling: TilingArguments,
    top_k: int,
    batch_size: int,
) -> Iterator[Prediction]:
    for file, name in zip(files, unique_names(files), strict=True):
        try:
            with open_image(file) as source:
                prediction = predict_tiled(
                    model,
                    source,
                    tile=tiling.tile,
                    overlap=tiling.overlap,
                    aggregate=tiling.aggregate,
                    batch_size=batch_size,
                    image_processor=image_processor,
                )
                if tiling.heat_maps is not None:
                    path = Path(tiling.heat_maps) / f"{name}_heat_map.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    prediction.figure(source, name=Path(file).name).savefig(path)
        except ValueError as error:
            yield Prediction(file, error=f"{file}: {error}")
            continue
        answer = {"file": file} | describe(prediction.logits, model.config, top_k)
        yield Prediction(file, answer | {"num_tiles": len(prediction.grid)})
