"""Fidelity: how close a model with few patches comes to the dense pass over all of them."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..arguments import FIDELITY_FRACTIONS
from ..model.budget import Budget
from ..model.heads import POOLINGS
from ..model.modeling_adaptive_vit import AdaptiveViTModel
from ..model.patches import ImagePatches, gather_tokens


# Rows of a matrix of similarities that are in memory at once.
CHUNK_SIZE = 1024

Inputs = Mapping[str, torch.Tensor]


@dataclass
class EncodedStates:
    """States of a batch after the last block.

    Attributes:
        image: `(B, D)` what a head reads: the CLS state, or pooled as `config.pooling` says.
        patches: `(B, K, D)` states of the patches that entered the encoder.
        mask: `(B, K)` bool, False where there is no state; None if there are all.
        logits: of the head; None without one.
    """

    image: torch.Tensor
    patches: torch.Tensor
    mask: torch.Tensor | None
    logits: torch.Tensor | None


@dataclass
class Fidelity:
    """Agreement of a model at one fraction of the patches with the dense pass, mean over images.

    Attributes:
        fraction: of the patches.
        image_cosine: of the image states; the CLS states where the head reads them.
        worst_image_cosine: of the image where it is lowest.
        patch_cosine: of the states of kept patches.
        nearest: fraction of the images whose nearest other image is the same.
        neighbors: fraction of the nearest other images that are the same, of `num_neighbors` each.
        top1: fraction of the images (pixels, in segmentation) of the same class; None without a classifier.
    """

    fraction: float
    image_cosine: float
    worst_image_cosine: float
    patch_cosine: float
    nearest: float | None
    neighbors: float | None
    top1: float | None

    def as_metrics(self) -> dict[str, float]:
        """Measured values by name, each with the percentage of the patches, such as `image_cosine_10`."""
        percentage = f"{100 * self.fraction:g}"
        names = [entry.name for entry in fields(self) if entry.name != "fraction"]
        values = {f"{name}_{percentage}": getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def check_fractions(name: str, fractions: Sequence[float]) -> None:
    """Raises: ValueError for one that is no fraction in (0, 1]."""
    for fraction in fractions:
        if not Budget(fraction, name).is_fraction:
            raise ValueError(f"{name}={fraction!r} must be a fraction of the patches in (0, 1], such as 0.1.")


@contextlib.contextmanager
def base_outputs(model: nn.Module) -> Iterator[list[ModelOutput]]:
    """Collects what the base model of `model` returns, whatever head or wrapper calls it."""
    found: list[ModelOutput] = []
    base = extract_model_from_parallel(model, keep_torch_compile=False).base_model
    handle = base.register_forward_hook(lambda module, inputs, outputs: found.append(outputs))
    try:
        yield found
    finally:
        handle.remove()


def encode_states(model: nn.Module, inputs: Inputs, **kwargs: Any) -> EncodedStates:
    """Runs a model and returns the states of images and patches.

    Args:
        model: an AdaptiveViT with or without a head, also in a wrapper for several processes.
        inputs: of `forward`.
        kwargs: others of its arguments, such as `selected_patches` or `dense_fraction`.
    """
    base: AdaptiveViTModel = extract_model_from_parallel(model, keep_torch_compile=False).base_model
    with base_outputs(model) as found:
        logits = getattr(model(**inputs, **kwargs), "logits", None)
    (outputs,) = found
    states, mask = patch_states(outputs)
    return EncodedStates(image_states(base, outputs), states, mask, logits)


def image_states(base: AdaptiveViTModel, outputs: ModelOutput) -> torch.Tensor:
    """States `(B, D)` of whole images: what `config.pooling` makes of the tokens."""
    if base.config.pooling == "map":
        return outputs.pooler_output
    pooling = POOLINGS[base.config.pooling](base.config)
    num_tokens = outputs.token_coordinates.shape[1]
    states = pooling(outputs.last_hidden_state, num_tokens, outputs.token_sizes)
    if base.final_norm == "pooled":
        states = base.layernorm(states.unsqueeze(1)).squeeze(1)
    return states


def patch_states(outputs: ModelOutput) -> tuple[torch.Tensor, torch.Tensor | None]:
    """States `(B, K, D)` of the patches that entered the encoder, and which of them have one, `(B, K)`.

    A patch that a token reducer merged has the state of its group; one that it dropped has none.
    """
    states = outputs.last_hidden_state[:, -outputs.token_coordinates.shape[1] :]
    if outputs.token_assignments is None:
        return states, outputs.patch_mask
    token = outputs.token_assignments[:, -1]  # (B, K)
    present = token >= 0
    return gather_tokens(states, token.clamp(min=0)), present


@torch.no_grad()
def measure_fidelity(
    model: PreTrainedModel,
    batches: Iterable[Inputs],
    dense_model: PreTrainedModel | None = None,
    fractions: Sequence[float] = FIDELITY_FRACTIONS,
    num_neighbors: int = 5,
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
) -> list[Fidelity]:
    """Compares a model that selects patches with the dense pass, at several fractions of the patches.

        inputs = [processor(image, return_tensors="pt") for image in images]
        for row in measure_fidelity(model, inputs):
            print(f"{row.fraction:.0%}: {row.image_cosine:.3f}")

    Args:
        model: an AdaptiveViT with a `patch_selector`, with or without a head; it is set to evaluation.
        batches: inputs of `forward`, whole images or all of their patches, on the model's device.
        dense_model: whose dense pass is the measure, such as the checkpoint before it was trained; default:
            `model` itself.
        fractions: of the patches.
        num_neighbors: other images that count for `neighbors`.
        gather: joins `(B, ...)` of all processes.

    Raises:
        ValueError: for a model without a selector, a fraction out of range, or no images.
    """
    check_fractions("fractions", fractions)
    base: AdaptiveViTModel = extract_model_from_parallel(model, keep_torch_compile=False).base_model
    if base.selector is None:
        raise ValueError(
            "The model has patch_selector=None and keeps all patches: load it with a patch_selector, such as "
            'patch_selector="uniform", num_selected_patches=0.1.'
        )
    model.eval()
    dense_model = model if dense_model is None else dense_model.eval()
    rows: list[list[dict[str, torch.Tensor]]] = [[] for _ in fractions]
    targets = []
    for inputs in batches:
        target = encode_states(dense_model, inputs, dense_fraction=1.0)
        targets.append(gather(target.image.float()))
        for row, fraction in zip(rows, fractions, strict=True):
            values = compare_with_dense(model, inputs, target, fraction)
            row.append({name: gather(value) for name, value in values.items()})
    if not targets:
        raise ValueError("There are no images to measure on: give at least one batch.")
    dense = torch.cat(targets)
    return [
        summarize(
            fraction,
            {name: torch.cat([values[name] for values in row]) for name in row[0]},
            dense,
            num_neighbors,
        )
        for fraction, row in zip(fractions, rows, strict=True)
    ]


def compare_with_dense(
    model: PreTrainedModel, inputs: Inputs, target: EncodedStates, fraction: float
) -> dict[str, torch.Tensor]:
    """Values of each image at a fraction of its patches.

    Returns:
        `states` `(B, D)`, `image_cosine`, `patch_cosine` and, of classifiers, `top1`, `(B,)` each.
    """
    base: AdaptiveViTModel = extract_model_from_parallel(model, keep_torch_compile=False).base_model
    patches = ImagePatches.from_inputs(base.config, **inputs)
    selection = base.select(patches, sample=False, num_selected=float(fraction))
    selected = patches.raster_indices(selection.indices, selection.mask)
    states = encode_states(model, inputs, selected_patches=selected)
    indices = selection.indices
    expected = target.patches if indices is None else gather_tokens(target.patches, indices)
    cosines = nn.functional.cosine_similarity(states.patches.float(), expected.float(), dim=-1)  # (B, K)
    present = torch.ones_like(cosines) if states.mask is None else states.mask.float()
    values = {
        "states": states.image.float(),
        "image_cosine": nn.functional.cosine_similarity(states.image.float(), target.image.float(), dim=-1),
        "patch_cosine": (cosines * present).sum(dim=1) / present.sum(dim=1).clamp(min=1),
    }
    if states.logits is not None and base.config.problem_type not in (
        "regression",
        "multi_label_classification",
    ):
        same = states.logits.argmax(dim=1) == target.logits.argmax(dim=1)
        values["top1"] = same.float().flatten(1).mean(dim=1) if same.ndim > 1 else same.float()
    return values


def summarize(
    fraction: float, values: dict[str, torch.Tensor], dense: torch.Tensor, num_neighbors: int
) -> Fidelity:
    """Means over images of the values of `compare_with_dense`, and agreement of nearest images."""
    nearest = neighbors = None
    number = min(num_neighbors, len(dense) - 1)
    if len(dense) > 2:  # of two images, each has the other
        found, expected = (nearest_images(states, number) for states in (values["states"], dense))
        nearest = (found[:, 0] == expected[:, 0]).float().mean().item()
        same = (found.unsqueeze(2) == expected.unsqueeze(1)).any(dim=2)
        neighbors = same.float().mean().item()
    return Fidelity(
        fraction,
        values["image_cosine"].mean().item(),
        values["image_cosine"].min().item(),
        values["patch_cosine"].mean().item(),
        nearest,
        neighbors,
        values["top1"].mean().item() if "top1" in values else None,
    )


def nearest_images(states: torch.Tensor, number: int) -> torch.Tensor:
    """Indices `(n, number)` of the other images whose states `(n, D)` have the highest cosines."""
    states = nn.functional.normalize(states, dim=-1)
    found = []
    for start in range(0, len(states), CHUNK_SIZE):
        similarity = states[start : start + CHUNK_SIZE] @ states.T
        row = torch.arange(len(similarity), device=states.device)
        similarity[row, start + row] = -torch.inf
        found.append(similarity.topk(number, dim=1).indices)
    return torch.cat(found)
