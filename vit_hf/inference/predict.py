"""Classification of image files, whole or tile by tile; an unreadable file gives an error result."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..arguments import TilingArguments
from ..data.images import decode_image, prepare_images, unique_names
from ..readers.opening import open_image
from ..readers.suffixes import is_image, is_whole_image
from .aggregation import check_aggregation, problem_type_of
from .tiles import predict_tiled


@dataclass
class FilePrediction:
    """The result for one file, or the error.

    `result` has `file`; `label`, `score` and `top_k` (labels with scores, the best first), or for a
    regression `value`; and with `with_patches`, `grid` (rows, columns), `selected_patches` (raster indices
    in that grid) and `patches`, such as "196 of 4816".
    """

    file: str
    result: dict[str, Any] | None = None
    error: str | None = None


# Files, batches of those that can be used (with the model's inputs), and an error for each of the others.
PreparedFiles = tuple[list[str], list[tuple[list[str], dict[str, torch.Tensor]]], dict[str, str]]


class Preparation:
    """Collates files: reads and prepares them, and collects the errors of those that fail.

    Args:
        image_processor: the model's.
        read: makes an image of what stands for a file; ValueError if that cannot be done.
    """

    def __init__(
        self, image_processor: BaseImageProcessor, read: Callable[[str], PIL.Image.Image] = decode_image
    ):
        self.image_processor = image_processor
        self.read = read

    def __call__(self, files: list[str]) -> PreparedFiles:
        images, errors = {}, {}
        for file in files:
            try:
                images[file] = self.read(file)
            except ValueError as error:
                is_large = is_image(file) and not is_whole_image(file)
                errors[file] = f"{error} Set tile to read it by regions." if is_large else str(error)
        if not images:
            return files, [], errors
        try:
            return (
                files,
                [(list(images), prepare_images(self.image_processor, list(images.values())))],
                errors,
            )
        except ValueError:
            # Sizes that do not stack, or one image that spoils the batch: each by itself.
            batches = []
        for file, image in images.items():
            try:
                batches.append(([file], prepare_images(self.image_processor, [image])))
            except ValueError as error:
                errors[file] = f"{file}: {error}"
        return files, batches, errors


def predict_files(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    files: list[str],
    top_k: int = 5,
    with_patches: bool = False,
    batch_size: int = 16,
    num_workers: int = 0,
) -> Iterator[FilePrediction]:
    """Classifies image files, of any sizes, in order.

    Args:
        model: any image classifier of transformers, on the device to use.
        image_processor: the one that goes with it.
        files: to read.
        top_k: number of labels to list.
        with_patches: whether to output the selected patches.
        batch_size: images at a time.
        num_workers: processes that read images.

    Raises:
        TypeError: for `with_patches` with a model that does not output selected patches.
    """
    check_with_patches(model, with_patches)
    prepare = Preparation(image_processor)
    loader = DataLoader(files, batch_size=batch_size, num_workers=num_workers, collate_fn=prepare)
    return _predictions(model.eval(), loader, top_k, with_patches)


def check_with_patches(model: PreTrainedModel, with_patches: bool) -> None:
    """Refuses `with_patches` for a model that does not output selected patches.

    Raises:
        TypeError: if so.
    """
    if with_patches and not hasattr(model.config, "patch_selector"):
        raise TypeError(
            f"with_patches: {type(model).__name__} does not output selected_patches: leave with_patches out"
        )


def _predictions(
    model: PreTrainedModel, loader: DataLoader, top_k: int, with_patches: bool
) -> Iterator[FilePrediction]:
    for prepared in loader:
        yield from predict_prepared(model, prepared, top_k, with_patches)


@torch.inference_mode()
def predict_prepared(
    model: PreTrainedModel, prepared: PreparedFiles, top_k: int, with_patches: bool
) -> list[FilePrediction]:
    """Predicts files that a `Preparation` read; the model should be in evaluation mode."""
    files, batches, errors = prepared
    results = {}
    for names, features in batches:
        results |= _predict_batch(model, names, features, top_k, with_patches, errors)
    return [FilePrediction(file, results.get(file), errors.get(file)) for file in files]


def _predict_batch(
    model: PreTrainedModel,
    files: list[str],
    features: dict[str, torch.Tensor],
    top_k: int,
    with_patches: bool,
    errors: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """Predicts one batch by file; adds the model's refusals to `errors`."""
    try:
        outputs = model(**{name: values.to(model.device) for name, values in features.items()})
    except ValueError as error:
        if len(files) == 1:
            errors[files[0]] = f"{files[0]}: {error}"
            return {}
        # One image may have too few patches, say: each by itself.
        results = {}
        for index, file in enumerate(files):
            alone = {name: values[index : index + 1] for name, values in features.items()}
            results |= _predict_batch(model, [file], alone, top_k, with_patches, errors)
        return results

    results = {}
    for index, file in enumerate(files):
        result = {"file": file} | describe(outputs.logits[index].float().cpu(), model.config, top_k)
        if with_patches:
            selected = outputs.selected_patches[index]
            result["grid"] = outputs.spatial_shapes[index].tolist()
            result["selected_patches"] = selected[selected >= 0].tolist()
            result["patches"] = f"{len(result['selected_patches'])} of {math.prod(result['grid'])}"
        results[file] = result
    return results


def describe(logits: torch.Tensor, config: Any, top_k: int) -> dict[str, Any]:
    """Labels and scores of logits `(num_labels,)`, or the values of a regression."""
    if config.problem_type == "regression" or config.num_labels == 1:
        return {"value": logits.item() if len(logits) == 1 else logits.tolist()}
    is_multi_label = config.problem_type == "multi_label_classification"
    scores = logits.sigmoid() if is_multi_label else logits.softmax(-1)
    best = scores.topk(min(top_k, len(scores)))
    ranking = [
        {"label": config.id2label[label], "score": round(score, 6)}
        for label, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return {**ranking[0], "top_k": ranking}


def predict_files_tiled(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    files: list[str],
    tiling: TilingArguments,
    top_k: int = 5,
    with_patches: bool = False,
    batch_size: int = 16,
) -> Iterator[FilePrediction]:
    """Classifies image files by their tiles, in order; results of `predict_files` gain `num_tiles`.

    Args:
        model: any image classifier of transformers, on the device to use.
        image_processor: the one that goes with it.
        files: to read.
        tiling: with `tile` set.
        top_k: number of labels to list.
        with_patches: refused, as every tile has patches of its own.
        batch_size: tiles at a time.

    Raises:
        ValueError: for `with_patches`, or an aggregation that the model's problem does not have.
    """
    if with_patches:
        raise ValueError("with_patches is about images seen whole: leave it out, or leave out tile")
    check_aggregation(tiling.aggregate, problem_type_of(model.config))
    return _tiled_predictions(model, image_processor, files, tiling, top_k, batch_size)


def _tiled_predictions(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    files: list[str],
    tiling: TilingArguments,
    top_k: int,
    batch_size: int,
) -> Iterator[FilePrediction]:
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
            yield FilePrediction(file, error=f"{file}: {error}")
            continue
        result = {"file": file} | describe(prediction.logits, model.config, top_k)
        yield FilePrediction(file, result | {"num_tiles": len(prediction.grid)})
