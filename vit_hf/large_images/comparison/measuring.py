"""What one strategy is worth and costs. What runs in processes of their own is made here of what can be pickled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from transformers.utils import logging

from ...measure import alternate, resident_growth, return_free_memory
from ...model.modeling_adaptive_vit import AdaptiveViTForImageClassification
from ...training.loading import LabelledImages
from .flops import count_flops, tallying
from .predictors import Predictor
from .strategies import Strategy


# Of what is free, what a batch may take.
SHARE_OF_MEMORY = 0.5


@dataclass
class Measurement:
    """Of a strategy, everything but its speed.

    Attributes:
        right: by answer, for each image whether it was right.
        figures: those columns of `Row` that all answers have in common.
        pictures: files that show what was looked at, one for each example.
        predicted: by answer, what was answered about the examples.
    """

    right: dict[str, list[bool]]
    figures: dict[str, Any]
    pictures: list[str] = field(default_factory=list)
    predicted: dict[str, list[str]] = field(default_factory=dict)


def measure_strategy(
    strategy: Strategy,
    path: str,
    images: LabelledImages,
    examples: Sequence[int],
    typical: int,
    largest: int,
    folder: Path,
    batch_size: int,
    seed: int,
    device: str,
    fresh: bool,
) -> Measurement:
    """Accuracy, tokens, FLOPs, and pictures of the examples.

    Args:
        strategy: to measure.
        path: of the weights.
        images: to be right about.
        examples: places among them to draw.
        typical: place of the image that memory and FLOPs are counted for.
        largest: place of the one that batches have to fit.
        folder: of the pictures.
        batch_size: images at a time.
        seed: of random patches.
        device: such as "cpu".
        fresh: whether nothing was computed yet in this process, so that its memory tells something.
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
        places = range(first, min(first + figures["batch_size"], len(images)))
        for name, logits in predictor([images.read(place) for place in places]).items():
            answers = answers_of(logits, predictor.model.config.problem_type)
            labels = torch.as_tensor(images.labels[first : first + len(answers)])
            right.setdefault(name, []).extend(matches(answers, labels))
            predicted.setdefault(name, []).extend(words(answer, predictor.model.config) for answer in answers)
    folder.mkdir(parents=True, exist_ok=True)
    return Measurement(
        right,
        figures,
        [draw(predictor, images.read(place), folder / f"example_{place}") for place in examples],
        {name: [answers[place] for place in examples] for name, answers in predicted.items()},
    )


def growth(call: Callable[[], object], device: str) -> float | None:
    """MiB that a call takes at the most."""
    if device == "cpu":
        call()  # what libraries take once for all is not the strategy's
        return_free_memory()
        return resident_growth(call)
    if not device.startswith("cuda"):
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def fitting_batch(mebibytes: float | None, batch_size: int, device: str) -> int:
    """As many images at a time as leave half of the free memory free, and no more than were asked for."""
    free = free_memory(device)
    if free is None or not mebibytes or mebibytes <= 0:
        return batch_size
    return max(1, min(batch_size, int(SHARE_OF_MEMORY * free / mebibytes)))


def free_memory(device: str) -> float | None:
    """MiB, or None where the system does not tell."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0] / 2**20
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")), None)


def count(predictor: Predictor, call: Callable[[], object]) -> dict[str, Any]:
    """FLOPs by both ways of counting, and tokens; only the first of a model that is none of ours."""
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
    """`(B,)` classes, or `(B, L)` 0 and 1 of several labels an image."""
    if problem_type == "multi_label_classification":
        return (logits >= 0).long()
    return logits.argmax(dim=-1)


def matches(answers: torch.Tensor, labels: torch.Tensor) -> list[bool]:
    """For each image; of several labels, all must be right."""
    same = answers == labels.to(answers.dtype)
    return (same if same.ndim == 1 else same.all(dim=1)).tolist()


def words(answer: torch.Tensor, config: Any) -> str:
    numbers = [int(answer)] if answer.ndim == 0 else answer.nonzero().flatten().tolist()
    return ", ".join(str(config.id2label.get(number, number)) for number in numbers) or "nothing"


def draw(predictor: Predictor, image: PIL.Image.Image, stem: Path) -> str:
    """The file of a picture: small ones to the pixel, others as photographs."""
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
    """Milliseconds for one image and images a second in a batch, of each strategy, all of them by turns.

    Args:
        predictors: which end with their answers on the CPU, so that nothing is still running then.
        batch_sizes: how many of `images` each gets at once.
        image: the typical one.
        images: for batches, the same for all.
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
    """Lets `model` use the weights of `other` where they fit, so that many models are held as one.

    For measuring speed, which does not depend on them.
    """
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if name in theirs and theirs[name].shape == parameter.shape:
            parameter.data = theirs[name].data
