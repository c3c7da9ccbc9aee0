"""Each aggregation against NumPy; a new one fails here until it has its line."""

import numpy as np
import pytest
import torch

from vit_hf.inference.aggregation import TILE_AGGREGATIONS, AggregationOptions, aggregate_tiles


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    return -(probabilities * np.log(probabilities)).sum(axis=-1)


def attention(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(-entropy(softmax(logits, 1)) / 0.5)
    return (weights / weights.sum()) @ logits


def attention_of_several(logits: np.ndarray) -> np.ndarray:
    probabilities = 1 / (1 + np.exp(-logits))
    weights = np.exp(-entropy(np.stack((probabilities, 1 - probabilities), axis=-1)) / 0.5)
    return (weights / weights.sum(axis=0) * logits).sum(axis=0)


def vote(logits: np.ndarray) -> np.ndarray:
    votes = np.bincount(logits.argmax(axis=1), minlength=logits.shape[1])
    return np.log((votes + softmax(logits, 1).mean(axis=0)) / (len(logits) + 1))


def vote_of_several(logits: np.ndarray) -> np.ndarray:
    probabilities = 1 / (1 + np.exp(-logits))
    shares = ((probabilities > 0.5).sum(axis=0) + probabilities.mean(axis=0)) / (len(logits) + 1)
    return np.log(shares / (1 - shares))


EXPECTED = {
    "mean": (lambda logits: logits.mean(axis=0),) * 2,
    "max": (lambda logits: logits.max(axis=0),) * 2,
    "topk-mean": (lambda logits: np.sort(logits, axis=0)[-3:].mean(axis=0),) * 2,
    "attention": (attention, attention_of_several),
    "vote": (vote, vote_of_several),
}
PROBLEMS = ("single_label_classification", "multi_label_classification")
every_aggregation = pytest.mark.parametrize("name", TILE_AGGREGATIONS)
every_problem = pytest.mark.parametrize("problem", PROBLEMS)


@every_problem
@every_aggregation
@pytest.mark.parametrize("num_tiles", [1, 2, 30])
def test_against_numpy(name, problem, num_tiles):
    logits = np.random.default_rng(num_tiles).normal(size=(num_tiles, 4)) * 2
    options = AggregationOptions(problem, num_top_tiles=3, attention_temperature=0.5)
    found = aggregate_tiles(torch.from_numpy(logits), name, options)
    expected = EXPECTED[name][PROBLEMS.index(problem)](logits)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@every_problem
@every_aggregation
def test_order_makes_no_difference_and_extremes_are_finite(name, problem):
    logits = torch.randn(50, 6) * 500
    options = AggregationOptions(problem)
    found = aggregate_tiles(logits, name, options)
    assert found.shape == (6,) and found.dtype == torch.float32 and found.isfinite().all()
    again = aggregate_tiles(logits[torch.randperm(50)], name, options)
    torch.testing.assert_close(again, found, rtol=1e-6, atol=1e-6)


@every_problem
@every_aggregation
def test_tiles_that_agree_answer_as_one(name, problem):
    logits = torch.randn(1, 4)
    options = AggregationOptions(problem)
    found = aggregate_tiles(logits.expand(7, 4), name, options)
    assert found.argmax() == logits.argmax()
    if name != "vote":
        torch.testing.assert_close(found, logits[0])


def test_votes_outnumber_certainty():
    logits = torch.tensor([[0.1, 0.0], [0.1, 0.0], [-9.0, 9.0]])
    assert aggregate_tiles(logits, "mean").argmax() == 1
    assert aggregate_tiles(logits, "vote").argmax() == 0


def test_ties_go_to_the_more_probable():
    logits = torch.tensor([[0.5, 0.0], [0.0, 4.0]])
    assert aggregate_tiles(logits, "vote").argmax() == 1


def test_attention_listens_to_the_sure():
    logits = torch.tensor([[0.0, 0.1, 0.0]] * 9 + [[8.0, 0.0, 0.0]])
    unsure, sure = aggregate_tiles(logits, "mean"), aggregate_tiles(logits, "attention")
    assert sure[0] > 2 * unsure[0]
    # A tile torn between three counts a third: (8 + 0) / (1 + 9 / 3), about.
    assert sure[0] == pytest.approx(8 / (1 + 9 / 3), rel=0.02)
    cold = aggregate_tiles(logits, "attention", AggregationOptions(attention_temperature=0.01))
    torch.testing.assert_close(cold, logits[-1], atol=1e-3, rtol=0)
    hot = aggregate_tiles(logits, "attention", AggregationOptions(attention_temperature=1e6))
    torch.testing.assert_close(hot, unsure, atol=1e-4, rtol=0)
