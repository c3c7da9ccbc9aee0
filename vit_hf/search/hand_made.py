"""Networks that nobody searched for: equal blocks, and everything scaled together."""

from ..model.elastic_space import SearchSpace, SubNetwork


def hand_made_networks(space: SearchSpace, number: int) -> list[SubNetwork]:
    """From small to large, networks of equal blocks, of which every size grows together (compound scaling, Tan & Le, 2019).

    The i-th of `number` takes of each list of choices the one that is nearest to i / (number + 1) of the way through it. So
    with four choices each two of them are between the smallest and the largest of the space.

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
            f"the search space has not {number} hand-made networks of different sizes: give more choices, or set num_hand_made "
            f"to {len(set(networks))}"
        )
    return networks
