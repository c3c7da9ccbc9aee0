import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_hf import SearchSpace, SubNetwork
from vit_hf.arguments import Evolution
from vit_hf.search.evolution import crossover, evolve, hand_made_networks, mutate
from vit_hf.search.fitness import History


SPACE = SearchSpace((16, 24, 32), (2, 3, 4), (1, 2, 4), (1.0, 2.0, 3.0), (0.25, 0.5, 1.0))
SMALL = Evolution(population=12, generations=6, num_parents=4)


def size(network: SubNetwork) -> float:
    """Grows with every choice."""
    blocks = zip(network.num_attention_heads, network.mlp_ratios, strict=True)
    return network.hidden_size * network.keep_rate * sum(heads + ratio for heads, ratio in blocks)


def worth(network: SubNetwork) -> float:
    """Grows with size, but first blocks with heads and last ones without a wide network make the most of
    it."""
    score = network.hidden_size / 32 - abs(network.keep_rate - 0.5)
    for place, (heads, ratio) in enumerate(zip(network.num_attention_heads, network.mlp_ratios, strict=True)):
        score += heads / (1 + place) - 0.3 * ratio * place
    return score


@pytest.mark.parametrize("budget", [60, 150, 400])
def test_no_network_is_above_the_budget(budget):
    tried = evolve(SPACE, worth, lambda network: size(network) <= budget, SMALL)
    assert len({network for network, _ in tried}) == len(tried) > SMALL.population
    for network, fitness in tried:
        SPACE.check(network)
        assert size(network) <= budget and fitness == worth(network)
    assert [fitness for _, fitness in tried] == sorted((fitness for _, fitness in tried), reverse=True)


def test_evolution_is_better_than_chance():
    gains = []
    for seed in range(8):
        tried = evolve(SPACE, worth, lambda network: size(network) <= 150, replace(SMALL, seed=seed))
        generator, by_chance = random.Random(seed), set()
        while len(by_chance) < len(tried):
            network = SPACE.sample(generator)
            if size(network) <= 150:
                by_chance.add(network)
        gains.append(tried[0][1] - max(map(worth, by_chance)))
    assert sum(gain > 0 for gain in gains) >= 6 and sum(gains) > 0


def test_generations_get_better_and_are_told():
    told = []
    evolve(SPACE, worth, lambda network: True, SMALL, lambda *news: told.append(news))
    assert [generation for generation, _, _ in told] == list(range(6))
    bests = [fitness for _, _, fitness in told]
    assert bests == sorted(bests) and bests[-1] > bests[0]


def test_the_same_seed_searches_the_same():
    first, again, other = (
        evolve(SPACE, worth, lambda network: True, replace(SMALL, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_search_that_was_killed_goes_on(tmp_path):
    """With what it remembers it draws the same, and measures nothing twice."""
    asked: list[SubNetwork] = []

    def remembering(history: History, patience: float):
        def fitness(network: SubNetwork) -> float:
            value = history.get(network, "accuracy")
            if value is None:
                if len(asked) >= patience:
                    raise KeyboardInterrupt
                asked.append(network)
                value = worth(network)
                history.add(network, accuracy=value)
            return value

        return fitness

    path, allowed = tmp_path / "runs" / "history.jsonl", lambda network: size(network) <= 300
    with pytest.raises(KeyboardInterrupt):
        evolve(SPACE, remembering(History(path, {"supernet": "abc"}), 25), allowed, SMALL)
    with path.open("a") as file:
        file.write('{"network": {"hidden_si')  # it was writing
    results = evolve(SPACE, remembering(History(path, {"supernet": "abc"}), 10**6), allowed, SMALL)
    assert results == evolve(SPACE, worth, allowed, SMALL)
    assert len(asked) == len(set(asked)) == len(results)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_history_of_something_else_is_refused(tmp_path):
    History(tmp_path / "history.jsonl", {"supernet": "abc", "images": 5})
    with pytest.raises(ValueError, match=r"supernet 'abc'.*'xyz'"):
        History(tmp_path / "history.jsonl", {"supernet": "xyz", "images": 5})


def test_a_budget_below_everything_is_refused():
    with pytest.raises(ValueError, match="smallest network"):
        evolve(SPACE, worth, lambda network: False, SMALL)


def test_a_space_of_one_network_is_searched():
    space = SearchSpace((16,), (2,), (1,), (1.0,), (None,))
    assert [network for network, _ in evolve(space, lambda network: 1.0, lambda network: True, SMALL)] == [
        space.uniform(0)
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_children_are_of_the_space_and_their_parents(seed):
    generator = random.Random(seed)
    first, second = SPACE.sample(generator), SPACE.sample(generator)
    child = crossover(first, second, generator)
    SPACE.check(child)
    assert child.depth in (first.depth, second.depth)
    for place, block in enumerate(zip(child.num_attention_heads, child.mlp_ratios, strict=True)):
        assert block in [
            (parent.num_attention_heads[place], parent.mlp_ratios[place])
            for parent in (first, second)
            if parent.depth > place
        ]
    SPACE.check(mutate(SPACE, child, SMALL, generator))
    still = Evolution(mutation_depth=0.0, mutation_block=0.0)
    assert mutate(SPACE, child, still, generator) == child


def test_mutation_changes_as_much_as_it_is_told():
    generator = random.Random(0)
    parent = SPACE.uniform(0)
    children = [
        mutate(SPACE, parent, Evolution(mutation_depth=0.0, mutation_block=0.5), generator)
        for _ in range(400)
    ]
    assert {(child.depth, child.hidden_size, child.keep_rate) for child in children} == {(2, 16, 0.25)}
    # A block that is drawn anew has the same heads in one of three cases.
    changed = sum(child.num_attention_heads[0] != 1 for child in children) / 400
    assert 0.25 < changed < 0.42


def test_hand_made_networks_grow_in_everything():
    space = replace(SPACE, hidden_sizes=(8, 16, 24, 32), depths=(2, 3, 4, 5))
    small, large = hand_made_networks(space, 2)
    assert (small.hidden_size, small.depth, large.hidden_size, large.depth) == (16, 3, 24, 4)
    assert len(set(large.num_attention_heads)) == len(set(large.mlp_ratios)) == 1
    with pytest.raises(ValueError, match=r"num_hand_made is 9.*set num_hand_made to"):
        hand_made_networks(space, 9)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"population": 0}, "population is 0"), ({"mutation_block": 1.5}, "mutation_block is 1.5.*0 to 1")],
)
def test_senseless_settings_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Evolution(**values)
