import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_hf.model.selection import keep_top


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 30), st.data())
def test_keep_top(batch, length, data):
    number = data.draw(st.integers(1, length))
    scores = torch.tensor(
        data.draw(st.lists(st.integers(0, 4), min_size=batch * length, max_size=batch * length))
    )
    scores = scores.view(batch, length).float()
    indices, mask = keep_top(scores, number)
    assert mask is None
    for row, kept in zip(scores.tolist(), indices.tolist(), strict=True):
        assert kept == sorted(sorted(range(length), key=lambda index: (-row[index], index))[:number])


def test_keep_top_with_fewer_than_k():
    scores = torch.tensor([[1.0, 5.0, 3.0, 2.0], [4.0, 9.0, -torch.inf, -torch.inf]])
    indices, mask = keep_top(scores, 3, torch.tensor([3, 2]))
    assert indices.tolist() == [[1, 2, 3], [0, 1, 0]]
    assert mask.tolist() == [[True, True, True], [True, True, False]]
