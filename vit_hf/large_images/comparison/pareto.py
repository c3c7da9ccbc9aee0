"""Which strategies are worth considering at all."""

from collections.abc import Sequence


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Places of the points that no other one beats: none has as low a cost and as high a value, and is better in one.

    Args:
        costs: less is better.
        values: more is better.

    Returns:
        Places, by ascending cost. Of equal points all are among them, or none.
    """
    front: list[int] = []
    best, best_cost = -float("inf"), -float("inf")
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], -values[place])):
        if values[place] > best or (values[place], costs[place]) == (best, best_cost):
            front.append(place)
            best, best_cost = values[place], costs[place]
    return front
