"""Prediction of masks and boxes of image files, tile by tile, into a folder, for the `predict` command."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor

from ..arguments import DenseArguments, parse_budget
from ..checkpoints.loading import dense_class_of, set_resolution
from ..data.images import unique_names
from ..model.configuration_adaptive_vit import PARTS, AdaptiveViTConfig
from ..model.options import keep_options
from ..readers.opening import ImageSource, open_image
from .box_merging import check_merging
from .dense_pictures import picture_of
from .dense_tiles import (
    check_nodata,
    check_pixels,
    check_scales,
    check_tile_selector,
    model_fingerprint,
)
from .detect_tiles import TiledDetection, detect_tiled
from .mask_files import check_map_file
from .predict import FilePrediction
from .segment_tiles import TiledSegmentation, segment_tiled
from .vector_output import coco_annotations, detection_features, segmentation_features, write_json


# Ends of the names of model classes, as `DENSE_CLASSES` has them, and what loads them.
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


def check_dense_arguments(arguments: DenseArguments) -> None:
    """
    Raises:
        ValueError: for an option outside its range, or an unknown format.
    """
    check_scales(arguments.scales)
    check_pixels("halo", arguments.halo)
    check_merging(arguments.merging, None, arguments.class_wise)
    check_nodata(arguments.nodata)
    check_tile_selector(arguments.tile_selector, parse_budget(arguments.num_selected_tiles), None)
    if not arguments.tolerance >= 0:
        raise ValueError(f"tolerance={arguments.tolerance!r} must be a number of pixels, 0 or more.")
    known = sorted({name for names in FORMATS.values() for name in names})
    if unknown := sorted(set(arguments.format or ()) - set(known)):
        raise ValueError(f"format={unknown[0]!r} is unknown. Choose from {', '.join(known)}.")


def load_dense_model(path: str, **changes: Any) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Loads a saved segmentation model or detector and its image processor.

    Args:
        path: checkpoint, local or on the Hub.
        changes: `resolution` of the image processor, and fields of an adaptive ViT, which may be the
            backbone.

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
                f"{next(iter(changes))} is for adaptive ViTs, and {path} is a {config.model_type} without "
                "one: leave it out"
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
) -> Iterator[FilePrediction]:
    """Writes masks or boxes of image files, in order, to a folder.

    Each file has its name there with other endings; `NAME.json`, which is written last, has the result. A
    file whose result is there, for the same image and arguments, is not computed again, and one that was
    interrupted goes on.

    Args:
        model: a segmentation model or a detector, on the device to use.
        image_processor: the one that goes with it.
        files: to read.
        output: the folder; made if it does not exist.
        arguments: what is made of them.
        tile, overlap, batch_size, progress: see `segment_tiled`.

    Raises:
        ValueError: for an option outside its range, or a format that the model's output does not have.
    """
    check_dense_arguments(arguments)
    folders = {Path(file).resolve().parent for file in files}
    if Path(output).resolve() in folders:
        raise ValueError(
            f"output={str(output)!r} is a folder of the images themselves, which files of the result could "
            "replace: name another folder."
        )
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
        "num_selected_tiles": parse_budget(arguments.num_selected_tiles),
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
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    files: Sequence[str],
    folder: Path,
    arguments: DenseArguments,
    kind: str,
    formats: Sequence[str],
    common: dict[str, Any],
) -> Iterator[FilePrediction]:
    write = _write_masks if kind == "masks" else _write_objects
    for file, name in zip(files, unique_names(files), strict=True):
        try:
            settings = _settings(model, file, arguments, common)
            result = _earlier_result(folder / f"{name}.json", settings)
            if result is None:
                with open_image(file) as source:
                    result = {"file": file, "kind": kind}
                    result |= write(model, image_processor, source, folder, name, arguments, formats, common)
                write_json(folder / f"{name}.json", {**result, "settings": settings})
        except (OSError, ValueError) as error:
            yield FilePrediction(file, error=f"{file}: {error}")
            continue
        yield FilePrediction(file, result)


def _settings(
    model: PreTrainedModel, file: str, arguments: DenseArguments, common: dict[str, Any]
) -> dict[str, Any]:
    status = os.stat(file)
    settings = {
        "model": model_fingerprint(model),
        "path": os.path.abspath(file),
        "bytes": status.st_size,
        "modified": status.st_mtime_ns,
        **asdict(arguments),
        **{name: value for name, value in common.items() if name not in ("progress", "batch_size")},
    }
    return json.loads(json.dumps(settings))


def _earlier_result(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict) or result.pop("settings", None) != settings:
        return None
    return result if all((path.parent / name).exists() for name in result["outputs"]) else None


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
        **_common_result(result),
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
        **_common_result(result),
        "num_objects": len(result),
        "objects": dict(counts.most_common()),
        "outputs": outputs,
    }


def _common_result(result: TiledDetection | TiledSegmentation) -> dict[str, Any]:
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
