"""Evolutionary search for the best sub-network that a budget allows. AutoFormer (Chen et al., 2021),
section 3.3."""

import random
from collections.abc import Callable
from dataclasses import replace

from ..arguments import Evolution
from ..model.elastic_space import SearchSpace, SubNetwork


# Random draws per requested network, to find one that is new and within the budget.
TRIES = 50


def mutate(
    space: SearchSpace, parent: SubNetwork, evolution: Evolution, generator: random.Random
) -> SubNetwork:
    """Returns a randomly changed copy of the parent; additional blocks are drawn at random."""
    fresh = space.sample(generator)
    changes = {
        name: getattr(fresh, name)
        for name in ("hidden_size", "keep_rate")
        if generator.random() < evolution.mutation_depth
    }
    depth = fresh.depth if generator.random() < evolution.mutation_depth else parent.depth
    heads, ratios = list(parent.num_attention_heads[:depth]), list(parent.mlp_ratios[:depth])
    for block in range(depth):
        if block >= parent.depth or generator.random() < evolution.mutation_block:
            heads[block : block + 1] = [generator.choice(space.num_attention_heads)]
            ratios[block : block + 1] = [generator.choice(space.mlp_ratios)]
    return replace(parent, num_attention_heads=tuple(heads), mlp_ratios=tuple(ratios), **changes)


def crossover(first: SubNetwork, second: SubNetwork, generator: random.Random) -> SubNetwork:
    """Returns a network with each choice and each block from one of two parents."""
    depth, hidden_size, keep_rate = (
        getattr(generator.choice((first, second)), name) for name in ("depth", "hidden_size", "keep_rate")
    )
    blocks = []
    for block in range(depth):
        having = [parent for parent in (first, second) if parent.depth > block]
        parent = generator.choice(having)
        blocks.append((parent.num_attention_heads[block], parent.mlp_ratios[block]))
    heads, ratios = zip(*blocks, strict=True)
    return SubNetwork(hidden_size, heads, ratios, keep_rate)


def evolve(
    space: SearchSpace,
    fitness: Callable[[SubNetwork], float],
    is_allowed: Callable[[SubNetwork], bool],
    evolution: Evolution,
    report: Callable[[int, SubNetwork, float], None] | None = None,
) -> list[tuple[SubNetwork, float]]:
    """Returns all evaluated networks with their fitness, the best first; of equal ones the first found.

    Draws depend on the seed and on the results of `fitness` and `is_allowed`: if these cache their
    results, an interrupted search resumes.

    Args:
        space: search space.
        fitness: fitness of a network, higher is better.
        is_allowed: whether a network is within the budget.
        evolution: settings of the search.
        report: receives the number of each completed generation, the best network so far, and its fitness.

    Raises:
        ValueError: if the budget does not allow the smallest network.
    """
    smallest = space.uniform(0)
    if not is_allowed(smallest):
        raise ValueError("the budget does not even allow the smallest network of the space: raise it")
    generator = random.Random(evolution.seed)
    scores: dict[SubNetwork, float] = {}

    def draw(make: Callable[[], SubNetwork], number: int, drawn: list[SubNetwork]) -> None:
        """Adds up to `number` networks that are new and allowed."""
        for _ in range(TRIES * number):
            if number == 0:
                return
            network = make()
            if network not in scores and network not in drawn and is_allowed(network):
                drawn.append(network)
                number -= 1

    def parents() -> list[SubNetwork]:
        return sorted(scores, key=scores.get, reverse=True)[: evolution.num_parents]

    for generation in range(evolution.generations):
        networks: list[SubNetwork] = []
        if generation > 0:
            best, half = parents(), evolution.population // 2
            draw(lambda: crossover(*generator.choices(best, k=2), generator), half, networks)  # noqa: B023
            draw(
                lambda: mutate(space, generator.choice(best), evolution, generator),  # noqa: B023
                evolution.population - half,
                networks,
            )
        draw(lambda: space.sample(generator), evolution.population - len(networks), networks)
        if not networks and not scores:
            networks = [smallest]
        for network in networks:
            scores[network] = fitness(network)
        if report is not None:
            best_network = parents()[0]
            report(generation, best_network, scores[best_network])
    return sorted(scores.items(), key=lambda item: item[1], reverse=True)


def hand_made_networks(space: SearchSpace, number: int) -> list[SubNetwork]:
    """Returns networks of equal blocks, from small to large, with all sizes scaled together.

    Compound scaling (Tan & Le, 2019): network i of `number` takes from each list the choice nearest to
    i / (number + 1) of its length. With four choices each, two networks lie between smallest and largest.

    Raises:
        ValueError: if the space has fewer such networks.
    """
    networks = []
    for place in range(1, number + 1):

        def choose(choices: tuple, position: float = place / (number + 1)):
            return choices[int(position * (len(choices) - 1) + 0.5)]

        depth = choose(space.depths)
        networks.append(
            SubNetwork(
                choose(space.hidden_sizes),
                (choose(space.num_attention_heads),) * depth,
                (choose(space.mlp_ratios),) * depth,
                choose(space.keep_rates),
            )
        )
    if len(set(networks)) < number:
        raise ValueError(
            f"the search space has not {number} hand-made networks of different sizes: give more "
            f"choices, or set num_hand_made to {len(set(networks))}"
        )
    return networks
