"""Fitness and cost of sub-networks."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction

from ..arguments import COSTS
from ..comparison.measuring import count_flops
from ..measure import alternate
from ..model.elastic_space import SubNetwork
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification


class History:
    """Measurements of sub-networks by name, such as "accuracy" and "gflops", written to a file at once.

    The first line names the subject of the search. An incomplete last line, of a search that was killed, is
    dropped.

    Args:
        path: file, new or of an earlier start.
        subject: supernet and data, in plain JSON.

    Raises:
        ValueError: if the file holds a search of something else.
    """

    def __init__(self, path: Path, subject: dict[str, Any]):
        self.path = path
        self.measured: dict[SubNetwork, dict[str, float]] = {}
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        complete = [line for line in lines if line.endswith("\n")]
        if not complete:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(subject) + "\n")
            return
        found = json.loads(complete[0])
        differing = sorted(name for name in {*found, *subject} if found.get(name) != subject.get(name))
        if differing:
            name = differing[0]
            raise ValueError(
                f"{path} holds a search with {name} {found.get(name)!r}, and this one has "
                f"{subject.get(name)!r}: name another output_dir, or remove the file"
            )
        if len(complete) < len(lines):
            path.write_text("".join(complete))
        for line in complete[1:]:
            entry = json.loads(line)
            network = SubNetwork.from_dict(entry.pop("network"))
            self.measured.setdefault(network, {}).update(entry)

    def get(self, network: SubNetwork, name: str) -> float | None:
        """Returns a measurement, or None if there is none yet."""
        return self.measured.get(network, {}).get(name)

    def add(self, network: SubNetwork, **values: float) -> None:
        """Stores measurements."""
        self.measured.setdefault(network, {}).update(values)
        with self.path.open("a") as file:
            file.write(json.dumps({"network": network.to_dict(), **values}) + "\n")


def measure_costs(
    model: AdaptiveViTForImageClassification,
    inputs: dict[str, torch.Tensor],
    names: tuple[str, ...] = tuple(COSTS),
    repeats: int = 9,
) -> dict[str, float]:
    """Measures costs of a model: millions of parameters, GFLOPs, and milliseconds of a forward pass.

    Args:
        model: model in evaluation mode.
        inputs: inputs of one image, of the size to measure.
        names: keys of `COSTS`.
        repeats: number of forward passes for the median latency, after two for warm-up.
    """
    costs = {}
    forward = timed_forward(model, inputs)
    if "parameters" in names:
        costs["parameters"] = model.num_parameters() / 1e6
    if "gflops" in names:
        costs["gflops"] = count_flops(forward) / 1e9
    if "latency" in names:
        costs["latency"] = alternate([forward], repeats, warmup=2)[0] * 1e3
    return costs


def timed_forward(
    model: AdaptiveViTForImageClassification, inputs: dict[str, torch.Tensor]
) -> Callable[[], None]:
    """Returns a function that runs a forward pass and waits for the device."""

    @torch.no_grad()
    def forward() -> None:
        model(**inputs)
        if model.device.type != "cpu":
            torch.accelerator.synchronize()

    return forward


# Limit, in bytes, of the prepared images that are kept.
KEPT_BYTES = 2 * 2**30


class PreparedSplit:
    """Batches of a split, on a device.

    Args:
        examples: examples for `collate`.
        collate: makes a batch, with "labels", of a list of examples.
        batch_size: images in a forward pass.
        num_workers: processes that prepare images.
        device: device of the model.
    """

    def __init__(
        self,
        examples: Dataset,
        collate: Callable[[list], dict[str, torch.Tensor]],
        batch_size: int,
        num_workers: int,
        device: torch.device,
    ):
        self.loader = DataLoader(examples, batch_size, collate_fn=collate, num_workers=num_workers)
        self.device = device
        self.kept: list[dict[str, torch.Tensor]] = []
        self.is_complete = False

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        if self.is_complete:
            yield from self.kept
            return
        kept, size = [], 0
        for batch in self.loader:
            on_device = {name: values.to(self.device) for name, values in batch.items()}
            size += sum(values.nbytes for values in batch.values())
            if size <= KEPT_BYTES:
                kept.append(on_device)
            yield on_device
        if size <= KEPT_BYTES:
            self.kept, self.is_complete = kept, True

    def one_image(self) -> dict[str, torch.Tensor]:
        """Returns the inputs of the first image."""
        batch = next(iter(self.batches()))
        return {name: values[:1] for name, values in batch.items() if name != "labels"}

    @torch.no_grad()
    def evaluate(
        self, model: torch.nn.Module, compute_metrics: Callable[[EvalPrediction], dict[str, float]]
    ) -> dict[str, float]:
        """Returns the metrics of a model in evaluation mode."""
        logits, labels = [], []
        for batch in self.batches():
            inputs = {name: values for name, values in batch.items() if name != "labels"}
            logits.append(model(**inputs).logits.float().cpu().numpy())
            labels.append(batch["labels"].cpu().numpy())
        return compute_metrics(EvalPrediction(np.concatenate(logits), np.concatenate(labels)))
