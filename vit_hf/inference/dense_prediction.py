"""Masks and boxes of image files, tile by tile, written to a folder: what the `predict` command does with a
segmentation model or a detector."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor

from ..checkpoints.loading import check_path, parse_budget, set_resolution
from ..data.images import unique_names
from ..model.configuration_adaptive_vit import PARTS, AdaptiveViTConfig
from ..model.options import keep_options
from ..readers.opening import ImageSource, open_image
from .box_merging import BOX_MERGERS, check_merging
from .dense_pictures import picture_of
from .dense_tiles import check_nodata, check_pixels, check_scales, check_tile_selector
from .detect_tiles import TiledDetection, detect_tiled
from .mask_files import check_map_file
from .predict import Prediction
from .segment_tiles import TiledSegmentation, segment_tiled
from .vector_output import coco_annotations, detection_features, segmentation_features, write_json


# How the names of classes of models end -> what loads them.
DENSE_MODELS = {
    "ForSemanticSegmentation": AutoModelForSemanticSegmentation,
    "ForObjectDetection": AutoModelForObjectDetection,
    "ForInstanceSegmentation": AutoModelForInstanceSegmentation,
    "ForUniversalSegmentation": AutoModelForUniversalSegmentation,
    "ForSegmentation": AutoModelForUniversalSegmentation,
}
FORMATS = {
    "masks": ("tif", "npy", "zarr", "geojson", "picture"),
    "objects": ("coco", "geojson", "picture"),
}
DEFAULT_FORMATS = {"masks": ("tif", "picture"), "objects": ("coco", "geojson", "picture")}


@dataclass(kw_only=True)
class DenseArguments:
    """What is made of a segmentation model or a detector."""

    _argument_group_name = "masks and boxes"

    halo: int = field(
        default=0, metadata={"help": "pixels at each inner side of a tile that are computed and thrown away"}
    )
    scales: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={
            "help": "by which images are resized, all at once, such as 1 0.5 for objects of different size"
        },
    )
    format: list[str] | None = field(
        default=None,
        metadata={
            "help": "of what is written to the folder output: tif, npy, zarr, geojson, picture of masks (default: "
            "tif picture); coco, geojson, picture of objects (default: all)"
        },
    )
    threshold: float = field(default=0.5, metadata={"help": "least score of an object"})
    merging: str = field(
        default="match",
        metadata={"help": "how objects of several tiles become one", "choices": tuple(BOX_MERGERS)},
    )
    class_wise: bool = field(default=True, metadata={"help": "merge only objects of one class"})
    tolerance: float = field(
        default=1.0, metadata={"help": "most pixels that outlines in GeoJSON are simplified by"}
    )
    tile_selector: str | None = field(
        default=None,
        metadata={
            "help": "pixel scorer that says which tiles matter, such as variance; the others are background"
        },
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
            "help": "whether models like Mask2Former, which can do both, give objects or masks of classes"
        },
    )

    def __post_init__(self):
        self.num_selected_tiles = parse_budget(self.num_selected_tiles)
        self.scales = list(check_scales(self.scales))
        check_pixels("halo", self.halo)
        check_merging(self.merging, None, self.class_wise)
        check_nodata(self.nodata)
        check_tile_selector(self.tile_selector, self.num_selected_tiles, None)
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance={self.tolerance!r} must be a number of pixels, 0 or more")
        known = {name for names in FORMATS.values() for name in names}
        if unknown := sorted(set(self.format or ()) - known):
            raise ValueError(f"format {unknown[0]!r} is unknown. Choose from {', '.join(sorted(known))}")


def dense_class_of(path: str) -> str | None:
    """The key of `DENSE_MODELS` for a checkpoint, local or on the Hub; None for any other model.

    Raises:
        OSError: if there is no such checkpoint.
    """
    check_path(path)
    names = PreTrainedConfig.get_config_dict(path)[0].get("architectures") or [""]
    return next((ending for ending in DENSE_MODELS if names[0].endswith(ending)), None)


def load_dense_model(path: str, **changes: Any) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A saved segmentation model or detector and its image processor.

    Args:
        path: checkpoint, local or on the Hub.
        changes: `resolution` of the image processor, and fields of an adaptive ViT, which may be the backbone.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: for a model of another kind, or changes that it does not have.
    """
    ending = dense_class_of(path)
    if ending is None:
        raise ValueError(f"{path} is no segmentation model and no detector: {', '.join(DENSE_MODELS)}")
    processor = AutoImageProcessor.from_pretrained(path)
    set_resolution(processor, changes.pop("resolution", None))
    config = AutoConfig.from_pretrained(path)
    if changes:
        inner = config if isinstance(config, AdaptiveViTConfig) else getattr(config, "backbone_config", None)
        if not isinstance(inner, AdaptiveViTConfig):
            raise ValueError(
                f"{next(iter(changes))} is for adaptive ViTs, and {path} is a {config.model_type} without one: leave "
                "it out"
            )
        changes = {name: None if value == "none" else value for name, value in changes.items()}
        if "token_reducer" in changes and changes["token_reducer"] is None:
            changes.setdefault("keep_rate", 1.0)
        if "patch_selector" in changes and changes["patch_selector"] is None:
            changes.setdefault("num_selected_patches", None)
        try:
            for name, value in keep_options(vars(inner), changes, PARTS).items():
                setattr(inner, name, value)
            inner.validate_architecture()
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__ or error)) from error
    return DENSE_MODELS[ending].from_pretrained(path, config=config), processor


def predict_files_dense(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    files: Sequence[str],
    output: str | os.PathLike,
    arguments: DenseArguments,
    tile: int | None = None,
    overlap: float = 0.25,
    batch_size: int = 8,
    progress: bool | None = None,
) -> Iterator[Prediction]:
    """Masks or boxes of image files, in order, written to a folder.

    Each file has its name there with other endings; `NAME.json`, which is written last, has the answer. A file
    whose answer is there, for the same image and arguments, is not computed again, and one that was interrupted
    goes on.

    Args:
        model: a segmentation model or a detector, on the device to use.
        image_processor: the one that goes with it.
        files: to read.
        output: the folder; made if it does not exist.
        arguments: what is made of them.
        tile, overlap, batch_size, progress: see `segment_tiled`.

    Raises:
        ValueError: for a format that the model's kind does not have.
    """
    kind = kind_of(model, arguments)
    formats = arguments.format or DEFAULT_FORMATS[kind]
    if wrong := [name for name in formats if name not in FORMATS[kind]]:
        raise ValueError(
            f"format {wrong[0]!r} is not for {kind}, which {type(model).__name__} gives: choose from "
            f"{', '.join(FORMATS[kind])}"
        )
    if len([name for name in formats if name in ("tif", "npy", "zarr")]) > 1:
        raise ValueError(f"format {' '.join(formats)}: a mask is written to one of tif, npy and zarr")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "masks":
        check_map_file("output", _mask_path(folder, "mask", formats))
    common = {
        "tile": tile,
        "overlap": overlap,
        "halo": arguments.halo,
        "scales": tuple(arguments.scales),
        "batch_size": batch_size,
        "tile_selector": arguments.tile_selector,
        "num_selected_tiles": arguments.num_selected_tiles,
        "nodata": arguments.nodata,
        "progress": progress,
    }
    return _predictions(model, image_processor, files, folder, arguments, kind, formats, common)


def kind_of(model: PreTrainedModel, arguments: DenseArguments) -> str:
    """The key of `FORMATS` for what a model gives."""
    name = type(model).__name__
    if name.endswith("ForSemanticSegmentation"):
        return "masks"
    return "objects" if name.endswith("ForObjectDetection") else arguments.universal


def _predictions(
    model, image_processor, files, folder, arguments, kind, formats, common
) -> Iterator[Prediction]:
    write = _write_masks if kind == "masks" else _write_objects
    for file, name in zip(files, unique_names(files), strict=True):
        try:
            settings = _settings(model, file, arguments, common)
            answer = _earlier_answer(folder / f"{name}.json", settings)
            if answer is None:
                with open_image(file) as source:
                    answer = {"file": file, "kind": kind}
                    answer |= write(model, image_processor, source, folder, name, arguments, formats, common)
                write_json(folder / f"{name}.json", {**answer, "settings": settings})
        except (OSError, ValueError) as error:
            yield Prediction(file, error=f"{file}: {error}")
            continue
        yield Prediction(file, answer)


def _settings(
    model: PreTrainedModel, file: str, arguments: DenseArguments, common: dict[str, Any]
) -> dict[str, Any]:
    status = os.stat(file)
    settings = {
        "model": model.config.name_or_path,
        "bytes": status.st_size,
        "modified": status.st_mtime_ns,
        **asdict(arguments),
        **{name: value for name, value in common.items() if name not in ("progress", "batch_size")},
    }
    return json.loads(json.dumps(settings))


def _earlier_answer(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(answer, dict) or answer.pop("settings", None) != settings:
        return None
    return answer if all((path.parent / name).exists() for name in answer["outputs"]) else None


def _mask_path(folder: Path, name: str, formats: Sequence[str]) -> Path:
    suffix = next((format for format in formats if format in ("tif", "npy", "zarr")), "npy")
    return folder / f"{name}_mask.{suffix}"


def _write_masks(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    source: ImageSource,
    folder: Path,
    name: str,
    arguments: DenseArguments,
    formats: Sequence[str],
    common: dict[str, Any],
) -> dict[str, Any]:
    path = _mask_path(folder, name, formats)
    result = segment_tiled(model, source, image_processor, output=path, **common)
    outputs = [path.name]
    if "geojson" in formats:
        write_json(folder / f"{name}.geojson", segmentation_features(result, arguments.tolerance))
        outputs.append(f"{name}.geojson")
    outputs += _write_picture(result, source, folder, name, formats)
    background = result.name_of(result.background)
    return {
        **_common_answer(result),
        "classes": {key: round(value, 6) for key, value in result.fractions.items()},
        "background": {"value": result.background, "class": background},
        "outputs": outputs,
    }


def _write_objects(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    source: ImageSource,
    folder: Path,
    name: str,
    arguments: DenseArguments,
    formats: Sequence[str],
    common: dict[str, Any],
) -> dict[str, Any]:
    journal = folder / f"{name}.tiles.partial"
    result = detect_tiled(
        model,
        source,
        image_processor,
        threshold=arguments.threshold,
        merging=arguments.merging,
        class_wise=arguments.class_wise,
        journal=journal,
        **common,
    )
    outputs = []
    if "coco" in formats:
        file_name = os.path.basename(getattr(source, "path", name))
        write_json(folder / f"{name}.coco.json", coco_annotations(result, file_name))
        outputs.append(f"{name}.coco.json")
    if "geojson" in formats:
        write_json(folder / f"{name}.geojson", detection_features(result, arguments.tolerance))
        outputs.append(f"{name}.geojson")
    outputs += _write_picture(result, source, folder, name, formats)
    journal.unlink()
    counts = Counter(result.name_of(label) for label in result.labels.tolist())
    return {
        **_common_answer(result),
        "num_objects": len(result),
        "objects": dict(counts.most_common()),
        "outputs": outputs,
    }


def _common_answer(result: TiledDetection | TiledSegmentation) -> dict[str, Any]:
    place = result.georeference
    return {
        "height": result.image_size[0],
        "width": result.image_size[1],
        "num_tiles": result.num_tiles,
        "num_computed_tiles": result.num_computed,
        "crs": None if place is None else place.crs,
        "transform": None if place is None else list(place.transform),
    }


def _write_picture(
    result: TiledDetection | TiledSegmentation,
    source: ImageSource,
    folder: Path,
    name: str,
    formats: Sequence[str],
) -> list[str]:
    if "picture" not in formats:
        return []
    path = folder / f"{name}.png"
    temporary = folder / f"{name}.png.writing"
    picture_of(result, source).save(temporary, format="PNG")
    os.replace(temporary, path)
    return [path.name]
