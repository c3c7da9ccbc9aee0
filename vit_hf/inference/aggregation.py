"""Aggregation of tile logits to image logits.

An aggregation is a function in `TILE_AGGREGATIONS`; a new one is a function and a line. None has parameters
to train.

Shapes: T tiles, L labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class AggregationOptions:
    """Options of aggregations.

    Attributes:
        problem_type: "single_label_classification", "multi_label_classification" or "regression".
        num_top_tiles: number of tiles of "topk-mean".
        attention_temperature: temperature of "attention".
    """

    problem_type: str = "single_label_classification"
    num_top_tiles: int = 5
    attention_temperature: float = 1.0

    def __post_init__(self):
        if type(self.num_top_tiles) is not int or self.num_top_tiles < 1:
            raise ValueError(
                f"num_top_tiles={self.num_top_tiles!r} must be a whole number of at least 1 tile."
            )
        temperature = self.attention_temperature
        if not isinstance(temperature, int | float) or not temperature > 0:
            raise ValueError(
                f"attention_temperature={temperature!r} must be above 0: near 0 the surest tile decides, and "
                "the larger it is, the more alike all tiles count."
            )

    @property
    def is_multi_label(self) -> bool:
        return self.problem_type == "multi_label_classification"


@dataclass(frozen=True)
class TileAggregation:
    """
    Attributes:
        combine: from `(T, L)` float64 logits and the options to `(L,)`.
        needs_classes: whether it makes no sense of the numbers of a regression.
    """

    combine: Callable[[torch.Tensor, AggregationOptions], torch.Tensor]
    needs_classes: bool = False


def probabilities_of(logits: torch.Tensor, is_multi_label: bool) -> torch.Tensor:
    """Returns `(..., L)` probabilities: softmax, or sigmoid per label for multi-label problems."""
    return logits.sigmoid() if is_multi_label else logits.softmax(dim=-1)


def votes_of(tile_logits: torch.Tensor, is_multi_label: bool) -> torch.Tensor:
    """Counts the tiles that predict each label, `(L,)` int64; with several labels per image, those with a
    probability over 0.5."""
    if is_multi_label:
        return (tile_logits > 0).sum(dim=0)
    return tile_logits.argmax(dim=1).bincount(minlength=tile_logits.shape[1])


def _mean(tile_logits: torch.Tensor, options: AggregationOptions) -> torch.Tensor:
    return tile_logits.mean(dim=0)


def _max(tile_logits: torch.Tensor, options: AggregationOptions) -> torch.Tensor:
    return tile_logits.amax(dim=0)


def _top_k_mean(tile_logits: torch.Tensor, options: AggregationOptions) -> torch.Tensor:
    """Averages, for each label, the k highest tile logits, as MI-Zero pools a slide (Lu et al., 2023)."""
    num_tiles = min(options.num_top_tiles, len(tile_logits))
    return tile_logits.topk(num_tiles, dim=0).values.mean(dim=0)


def _attention(tile_logits: torch.Tensor, options: AggregationOptions) -> torch.Tensor:
    """Averages with more weight on more certain tiles: exp(-entropy), as EATA weights samples (Niu et al.,
    2022).

    So one that wavers evenly between n classes counts 1/n of one that is certain, at a temperature of 1. Of
    several labels an image each has its own weights, by the entropy of whether it applies.
    """
    if options.is_multi_label:
        signed = torch.stack((tile_logits, -tile_logits), dim=-1)
        log_probabilities = torch.nn.functional.logsigmoid(signed)
    else:
        log_probabilities = tile_logits.log_softmax(dim=-1).unsqueeze(1)  # one weight for all labels
    entropy = -(log_probabilities.exp() * log_probabilities).nan_to_num(0).sum(dim=-1)
    weights = (-entropy / options.attention_temperature).softmax(dim=0)  # (T, L) or (T, 1)
    return (weights * tile_logits).sum(dim=0)


def _vote(tile_logits: torch.Tensor, options: AggregationOptions) -> torch.Tensor:
    """Returns logits whose probabilities are fractions of votes.

    One vote more is shared out as the mean probability has it, which breaks ties and keeps logits finite.
    """
    prior = probabilities_of(tile_logits, options.is_multi_label).mean(dim=0)
    votes = votes_of(tile_logits, options.is_multi_label)
    fractions = (votes + prior) / (len(tile_logits) + 1)
    if options.is_multi_label:
        return torch.special.logit(fractions, eps=1e-12)
    return fractions.clamp(min=1e-12).log()


TILE_AGGREGATIONS = {
    "mean": TileAggregation(_mean),
    "max": TileAggregation(_max),
    "topk-mean": TileAggregation(_top_k_mean),
    "attention": TileAggregation(_attention, needs_classes=True),
    "vote": TileAggregation(_vote, needs_classes=True),
}


def problem_type_of(config: PreTrainedConfig) -> str:
    """Returns a model's problem type; if its config has none, one label means regression, as in transformers'
    losses."""
    return config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")


def check_aggregation(aggregate: Any, problem_type: str) -> None:
    """
    Raises:
        ValueError: if it is unknown, or needs classes in a regression.
    """
    if aggregate not in TILE_AGGREGATIONS:
        raise ValueError(
            f"aggregate={aggregate!r} is unknown. Choose from {', '.join(map(repr, TILE_AGGREGATIONS))}."
        )
    if problem_type == "regression" and TILE_AGGREGATIONS[aggregate].needs_classes:
        fitting = [name for name, entry in TILE_AGGREGATIONS.items() if not entry.needs_classes]
        raise ValueError(
            f"aggregate={aggregate!r} goes by the probabilities of classes, and a regression has none. "
            f"Choose from {', '.join(map(repr, fitting))}."
        )


def aggregate_tiles(
    tile_logits: torch.Tensor, aggregate: str, options: AggregationOptions | None = None
) -> torch.Tensor:
    """Aggregates the logits of tiles to the image's `(L,)` float32.

    Args:
        tile_logits: `(T, L)`; for a regression, its numbers.
        aggregate: a key of `TILE_AGGREGATIONS`; see `predict_tiled`.
        options: options of the aggregation; by default for a single-label problem.

    Raises:
        ValueError: if the aggregation is unknown, or needs classes in a regression.
    """
    options = options or AggregationOptions()
    check_aggregation(aggregate, options.problem_type)
    # In double precision, so that the order of tiles does not matter.
    return TILE_AGGREGATIONS[aggregate].combine(tile_logits.double(), options).float()
