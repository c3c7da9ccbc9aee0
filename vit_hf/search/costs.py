"""What a network costs: parameters, FLOPs as torch counts them, and time as it is measured."""

from collections.abc import Callable

import torch

from ..large_images.comparison.flops import count_flops
from ..measure import alternate
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification


# By name, what a budget may limit: how tables and plots call it.
COSTS = {
    "parameters": "parameters (M)",
    "gflops": "GFLOPs of an image",
    "latency": "latency of an image (ms)",
}


def measure_costs(
    model: AdaptiveViTForImageClassification,
    inputs: dict[str, torch.Tensor],
    names: tuple[str, ...] = tuple(COSTS),
    repeats: int = 9,
) -> dict[str, float]:
    """Some of `COSTS` of a model: millions of parameters, GFLOPs, and milliseconds of a forward pass.

    Args:
        model: in evaluation mode.
        inputs: of one image, of the size that counts.
        names: which.
        repeats: forward passes of which the median is taken, after two that do not count.
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
    """A forward pass that has ended when the function has."""

    @torch.no_grad()
    def forward() -> None:
        model(**inputs)
        if model.device.type != "cpu":
            torch.accelerator.synchronize()

    return forward
