"""Evolutionary search for the best sub-network that a budget allows. AutoFormer (Chen et al., 2021),
section 3.3."""

import random
from collections.abc import Callable
from dataclasses import replace

from ..arguments import Evolution
from ..model.elastic_space import SearchSpace, SubNetwork


# How often chance is asked for a network that is new and within the budget, for each that is wanted.
TRIES = 50


def mutate(
    space: SearchSpace, parent: SubNetwork, evolution: Evolution, generator: random.Random
) -> SubNetwork:
    """A network that differs from its parent by chance; blocks that it has more are new."""
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
    """A network each of whose choices, and each of whose blocks, is that of one of its parents."""
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
    """All networks that were tried and what they are worth, the best first; of equals the one that was found
    first.

    What is drawn depends on the seed and on what `fitness` and `is_allowed` answer: where they remember what
    they answered before, a search that was interrupted goes on where it was.

    Args:
        space: to search in.
        fitness: what a network is worth, more is better.
        is_allowed: whether a network is within the budget.
        evolution: how to search.
        report: is told the number of a generation that was completed, and its best network so far with its
            fitness.

    Raises:
        ValueError: if the budget does not allow the smallest network.
    """
    smallest = space.uniform(0)
    if not is_allowed(smallest):
        raise ValueError("the budget does not even allow the smallest network of the space: raise it")
    generator = random.Random(evolution.seed)
    worth: dict[SubNetwork, float] = {}

    def draw(make: Callable[[], SubNetwork], number: int, drawn: list[SubNetwork]) -> None:
        """Adds up to `number` networks that are new and allowed."""
        for _ in range(TRIES * number):
            if number == 0:
                return
            network = make()
            if network not in worth and network not in drawn and is_allowed(network):
                drawn.append(network)
                number -= 1

    def parents() -> list[SubNetwork]:
        return sorted(worth, key=worth.get, reverse=True)[: evolution.num_parents]

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
        if not networks and not worth:
            networks = [smallest]
        for network in networks:
            worth[network] = fitness(network)
        if report is not None:
            best_network = parents()[0]
            report(generation, best_network, worth[best_network])
    return sorted(worth.items(), key=lambda item: item[1], reverse=True)


def hand_made_networks(space: SearchSpace, number: int) -> list[SubNetwork]:
    """From small to large, networks of equal blocks, of which every size grows together (compound scaling,
    Tan & Le, 2019).

    The i-th of `number` takes of each list of choices the one that is nearest to i / (number + 1) of the way
    through it. So with four choices each two of them are between the smallest and the largest of the space.

    Raises:
        ValueError: if the space has not so many of them.
    """
    networks = []
    for place in range(1, number + 1):

        def choose(choices: tuple, share: float = place / (number + 1)):
            return choices[int(share * (len(choices) - 1) + 0.5)]

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
            "choices, or set num_hand_made "
            f"to {len(set(networks))}"
        )
    return networks
