"""Measures one strategy: accuracy, FLOPs, time, memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging

from ..data.loading import LabeledImages
from ..measure import alternate, resident_growth, return_free_memory
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification
from .predictors import Predictor
from .strategies import Strategy


@dataclass
class Tally:
    """Counts of tokens and FLOPs of an adaptive ViT.

    Attributes:
        formula: FLOPs of embedding, encoder and head, without selector and convolutional stem. In
            multiply-adds: 4ND^2 + 2N^2D for attention and 2NDM for a feed-forward network of width M in each
            block of N tokens of D channels; P^2 C D for each patch of P x P pixels of C channels.
        tokens, tokens_out: patches that entered the encoder, and tokens that left it.
    """

    formula: int = 0
    tokens: int = 0
    tokens_out: int = 0


@contextmanager
def tallying(model: AdaptiveViTForImageClassification) -> Iterator[Tally]:
    """Counts over all calls of a model in the context."""
    tally, vit, is_selecting = Tally(), model.vit, False

    def begin_selecting(module: nn.Module, args: tuple) -> None:
        nonlocal is_selecting
        is_selecting = True

    def end_selecting(module: nn.Module, args: tuple, output: object) -> None:
        nonlocal is_selecting
        is_selecting = False

    def add(multiply_adds: int) -> None:
        # Selectors run the same layers, and embed patches on their own.
        if not is_selecting:
            tally.formula += 2 * multiply_adds

    def attention(module: nn.Module, args: tuple) -> None:
        batch, length, _ = args[0].shape
        width = module.num_attention_heads * module.head_dim
        add(batch * (length * weights_of(module) + 2 * length**2 * width))

    def linear(module: nn.Module, args: tuple) -> None:
        add(args[0].shape[:-1].numel() * weights_of(module))

    def embedding(module: nn.Module, args: tuple, output: object) -> None:
        add(output.features.shape[:2].numel() * module.projection.weight.numel())

    def result(module: nn.Module, args: tuple, output: object) -> None:
        tally.tokens += output.patch_coordinates.shape[:2].numel()
        tally.tokens_out += output.token_coordinates.shape[:2].numel()

    handles = [model.register_forward_hook(result), model.classifier.register_forward_pre_hook(linear)]
    handles.append(vit.embeddings.patch_embeddings.register_forward_hook(embedding))
    for layer in vit.layers:
        handles.append(layer.attention.register_forward_pre_hook(attention))
        handles.append(layer.mlp.register_forward_pre_hook(linear))
    if vit.selector is not None:
        handles.append(vit.selector.register_forward_pre_hook(begin_selecting))
        handles.append(vit.selector.register_forward_hook(end_selecting, always_call=True))
    try:
        yield tally
    finally:
        for handle in handles:
            handle.remove()


def weights_of(module: nn.Module) -> int:
    """Counts the multiply-adds of a token: 4D^2 of attention's projections, 2DM of a feed-forward network."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def count_flops(call: Callable[[], object]) -> int:
    """Counts FLOPs of matrix products, convolutions and attention in `call`, by torch's counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


# Fraction of the free memory that a batch may take.
MEMORY_FRACTION = 0.5


@dataclass
class Measurement:
    """Measurements of a strategy, except its speed.

    Attributes:
        right: for each output, whether each image was classified correctly.
        figures: columns of `Row` that all outputs have in common.
        pictures: files that show what was computed on, one for each example.
        predicted: for each output, the predictions for the examples.
    """

    right: dict[str, list[bool]]
    figures: dict[str, Any]
    pictures: list[str] = field(default_factory=list)
    predicted: dict[str, list[str]] = field(default_factory=dict)


def measure_strategy(
    strategy: Strategy,
    path: str,
    images: LabeledImages,
    examples: Sequence[int],
    typical: int,
    largest: int,
    folder: Path,
    batch_size: int,
    seed: int,
    device: str,
    fresh: bool,
) -> Measurement:
    """Measures accuracy, tokens and FLOPs, and draws the examples.

    Args:
        strategy: the strategy to measure.
        path: path of the weights.
        images: images with labels.
        examples: indices of the images to draw.
        typical: index of the image for memory and FLOPs.
        largest: index of the image that batches have to fit.
        folder: folder for the pictures.
        batch_size: images at a time, at most.
        seed: seed of random patches.
        device: such as "cpu".
        fresh: True in a fresh process, whose memory can be measured.
    """
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    predictor = strategy.load(path, device)
    image = images.read(typical)
    call = partial(predictor, [image])
    figures = {"peak_memory_mib": growth(call, device) if fresh else None}
    needed = figures["peak_memory_mib"]
    if fresh and largest != typical:
        needed = growth(partial(predictor, [images.read(largest)]), device)
    figures["batch_size"] = fitting_batch(needed, batch_size, device)
    figures |= count(predictor, call)
    right: dict[str, list[bool]] = {}
    predicted: dict[str, list[str]] = {}
    for first in range(0, len(images), figures["batch_size"]):
        indices = range(first, min(first + figures["batch_size"], len(images)))
        for name, logits in predictor([images.read(index) for index in indices]).items():
            answers = answers_of(logits, predictor.model.config.problem_type)
            labels = torch.as_tensor(images.labels[first : first + len(answers)])
            right.setdefault(name, []).extend(matches(answers, labels))
            predicted.setdefault(name, []).extend(words(answer, predictor.model.config) for answer in answers)
    folder.mkdir(parents=True, exist_ok=True)
    return Measurement(
        right,
        figures,
        [draw(predictor, images.read(index), folder / f"example_{index}") for index in examples],
        {name: [answers[index] for index in examples] for name, answers in predicted.items()},
    )


def growth(call: Callable[[], object], device: str) -> float | None:
    """Measures the peak growth of memory in a call, in MiB."""
    if device == "cpu":
        call()  # excludes what libraries allocate once
        return_free_memory()
        return resident_growth(call)
    if not device.startswith("cuda"):
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def fitting_batch(mebibytes: float | None, batch_size: int, device: str) -> int:
    """Returns the largest batch, up to `batch_size`, that fits into `MEMORY_FRACTION` of the free memory."""
    free = free_memory(device)
    if free is None or not mebibytes or mebibytes <= 0:
        return batch_size
    return max(1, min(batch_size, int(MEMORY_FRACTION * free / mebibytes)))


def free_memory(device: str) -> float | None:
    """Returns the free memory in MiB, or None where the system does not report it."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0] / 2**20
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")), None)


def count(predictor: Predictor, call: Callable[[], object]) -> dict[str, Any]:
    """Counts FLOPs by both methods, and tokens; models that are not adaptive ViTs get counted FLOPs only."""
    if not isinstance(predictor.model, AdaptiveViTForImageClassification):
        return {"gflops_counted": count_flops(call) / 1e9}
    with tallying(predictor.model) as tally:
        counted = count_flops(call)
    return {
        "gflops_counted": counted / 1e9,
        "gflops_formula": tally.formula / 1e9,
        "tokens": tally.tokens,
        "tokens_out": tally.tokens_out,
    }


def answers_of(logits: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Converts logits to classes `(B,)`, or to `(B, L)` 0 and 1 for multi-label models."""
    if problem_type == "multi_label_classification":
        return (logits >= 0).long()
    return logits.argmax(dim=-1)


def matches(answers: torch.Tensor, labels: torch.Tensor) -> list[bool]:
    """Compares predictions with labels for each image; all labels of a multi-label image must match."""
    same = answers == labels.to(answers.dtype)
    return (same if same.ndim == 1 else same.all(dim=1)).tolist()


def words(answer: torch.Tensor, config: Any) -> str:
    numbers = [int(answer)] if answer.ndim == 0 else answer.nonzero().flatten().tolist()
    return ", ".join(str(config.id2label.get(number, number)) for number in numbers) or "nothing"


def draw(predictor: Predictor, image: PIL.Image.Image, stem: Path) -> str:
    """Saves a picture and returns its path: small ones as PNG, others as JPEG."""
    picture = PIL.Image.fromarray(predictor.picture(image))
    path = stem.with_suffix(".png" if max(picture.size) < 256 else ".jpg")
    picture.save(path, quality=88)
    return str(path)


def measure_speed(
    predictors: Sequence[Predictor],
    batch_sizes: Sequence[int],
    image: PIL.Image.Image,
    images: Sequence[PIL.Image.Image],
    repeats: int,
) -> list[tuple[float, float]]:
    """Measures milliseconds for one image and images per second in batches; strategies take turns.

    Args:
        predictors: predictors, which return outputs on the CPU and so synchronize the device.
        batch_sizes: batch size of each predictor.
        image: the typical image.
        images: images for batches.
        repeats: turns.
    """
    alone = alternate([partial(predictor, [image]) for predictor in predictors], repeats, warmup=2)

    def in_batches(predictor: Predictor, size: int) -> None:
        for first in range(0, len(images), size):
            predictor(images[first : first + size])

    calls = [partial(in_batches, *pair) for pair in zip(predictors, batch_sizes, strict=True)]
    together = alternate(calls, max(2, repeats // 2))
    return [(1000 * one, len(images) / many) for one, many in zip(alone, together, strict=True)]


def share_weights(model: torch.nn.Module, other: torch.nn.Module) -> None:
    """Shares weights of `other` with `model` where shapes match, so that many models fit into memory.

    For measurements of speed, which does not depend on the values.
    """
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if name in theirs and theirs[name].shape == parameter.shape:
            parameter.data = theirs[name].data
