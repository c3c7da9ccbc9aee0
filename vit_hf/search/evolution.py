"""Evolutionary search for the best sub-network that a budget allows. AutoFormer (Chen et al., 2021),
section 3.3."""

import random
from collections.abc import Callable
from dataclasses import replace

from ..arguments import Evolution
from ..model.elastic_space import SearchSpace, SubNetwork


# Draws for each network that is needed, until one is new and within the budget.
TRIES = 50


def mutate(
    space: SearchSpace, parent: SubNetwork, evolution: Evolution, generator: random.Random
) -> SubNetwork:
    """Changes a network at random; additional blocks are drawn."""
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
    """Combines two networks: each choice, and each block, comes from one of them at random."""
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
    """Searches for the fittest networks, and returns all that were evaluated with their fitness, best first.

    Of equally fit networks the one that was found first comes first. The search depends only on the seed and
    on the results of `fitness` and `is_allowed`: if these are cached, an interrupted search continues.

    Args:
        space: search space.
        fitness: returns the fitness of a network; higher is better.
        is_allowed: returns whether a network is within the budget.
        evolution: settings of the search.
        report: receives the number of each complete generation, and the best network so far with its fitness.

    Raises:
        ValueError: if the budget does not allow the smallest network.
    """
    smallest = space.uniform(0)
    if not is_allowed(smallest):
        raise ValueError("the budget is below the smallest network of the search space: raise it")
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
    """Returns networks of equal blocks, from small to large, whose sizes grow together.

    Compound scaling (Tan & Le, 2019): the i-th of `number` networks takes from each list of choices the one
    nearest to the fraction i / (number + 1) of the list. So with four choices each, two networks lie between
    the smallest and the largest of the space.

    Raises:
        ValueError: if the space has fewer different ones.
    """
    networks = []
    for place in range(1, number + 1):

        def choose(choices: tuple, fraction: float = place / (number + 1)):
            return choices[int(fraction * (len(choices) - 1) + 0.5)]

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
            f"num_hand_made is {number}, and the search space has {len(set(networks))} such networks of "
            f"different sizes: give more choices, or set num_hand_made to {len(set(networks))}"
        )
    return networks
