import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import tiny_config
from vit_hf import POSITION_ENCODINGS, AdaptiveViTModel
from vit_hf.model.positions import interpolation_weights, sinusoid_1d, sinusoid_2d
from vit_hf.model.tokens import PatchTokens, grid_coordinates


sides = st.integers(1, 9)


def tokens_of_grid(rows: int, columns: int, dim: int = 32, batch: int = 1) -> PatchTokens:
    coordinates = grid_coordinates(rows, columns).expand(batch, -1, -1)
    return PatchTokens(
        torch.zeros(batch, rows * columns, dim),
        coordinates,
        torch.tensor([[rows, columns]]).expand(batch, -1),
    )


def encoding_of(name: str, **fields):
    model = AdaptiveViTModel(tiny_config(position_encoding=name, **fields))
    return model.embeddings.position_encoding


@settings(deadline=None, max_examples=40)
@given(sides, sides, sides, sides, st.sampled_from([("cubic", "bicubic"), ("linear", "bilinear")]))
def test_interpolation_weights_equal_torch(source_rows, source_columns, rows, columns, kernel):
    name, mode = kernel
    table = torch.randn(1, 3, source_rows, source_columns)
    tokens = tokens_of_grid(rows, columns)
    weights = interpolation_weights(tokens.coordinates, tokens.grid, (source_rows, source_columns), name)
    ours = weights @ table.flatten(2).transpose(1, 2)
    reference = torch.nn.functional.interpolate(table, (rows, columns), mode=mode, align_corners=False)
    torch.testing.assert_close(ours, reference.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_native_grid_reads_the_table_bit_for_bit():
    encoding = encoding_of("learned")
    added = encoding.add(tokens_of_grid(4, 4)).features
    assert torch.equal(added[0], encoding.position_embeddings[0, 1:])


def test_sinusoid_is_the_published_formula():
    table = sinusoid_1d(torch.arange(7), 12)
    for position in range(7):
        for channel in range(6):
            angle = position / 10000 ** (2 * channel / 12)
            assert table[position, 2 * channel].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, 2 * channel + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_sinusoid_2d_is_one_sinusoid_for_each_axis():
    table = sinusoid_2d(torch.tensor([[3.0, 5.5]]), 16)[0]
    for axis, place in enumerate((3.0, 5.5)):
        angles = [place / 10000 ** (channel / 4) for channel in range(4)]
        expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        assert table[8 * axis : 8 * axis + 8].tolist() == pytest.approx(expected, abs=1e-5)


def test_learned_from_sinusoidal_starts_there_and_learns():
    encoding = encoding_of("learned_from_sinusoidal")
    torch.testing.assert_close(encoding.position_embeddings[0, 1:], sinusoid_2d(grid_coordinates(4, 4), 32))
    assert encoding.position_embeddings[0, 0].abs().sum() == 0
    assert encoding.position_embeddings.requires_grad


def test_rotation_depends_on_differences_of_places_only():
    from vit_hf.model.positions import rotate_half_pairs

    encoding = encoding_of("rotary", num_attention_heads=2)
    query, key = torch.randn(2, 1, 1, 1, 16)

    def logit(query_place, key_place):
        def rotated(vector, place):
            tokens = PatchTokens(vector[0], torch.tensor([[place]]).float(), torch.tensor([[9, 9]]))
            return rotate_half_pairs(vector, encoding.rotation(tokens))

        return (rotated(query, query_place) * rotated(key, key_place)).sum().item()

    assert logit((1, 2), (3, 7)) == pytest.approx(logit((4, 1), (6, 6)), rel=1e-4)
    assert logit((1, 2), (3, 7)) != pytest.approx(logit((1, 2), (7, 3)), rel=1e-2)
    assert logit((5, 5), (5, 5)) == pytest.approx((query * key).sum().item(), rel=1e-4)


@pytest.mark.parametrize("name", POSITION_ENCODINGS)
def test_subset_equals_full_grid_at_the_same_places(name):
    encoding = encoding_of(name)
    full = tokens_of_grid(6, 5)
    indices = torch.tensor([[3, 11, 12, 28]])
    some = full.gather(indices)
    assert torch.equal(encoding.add(some).features, encoding.add(full).gather(indices).features)
    if encoding.rotation(full) is not None:
        for of_some, of_full in zip(encoding.rotation(some), encoding.rotation(full), strict=True):
            assert torch.equal(of_some, of_full[:, :, indices[0]])


@pytest.mark.parametrize("name", POSITION_ENCODINGS)
def test_images_of_a_batch_may_have_different_grids(name):
    encoding = encoding_of(name)
    wide, tall = tokens_of_grid(2, 6), tokens_of_grid(4, 3)
    both = PatchTokens(
        torch.zeros(2, 12, 32),
        torch.cat((wide.coordinates, tall.coordinates)),
        torch.cat((wide.grid, tall.grid)),
    )
    alone = torch.cat((encoding.add(wide).features, encoding.add(tall).features))
    torch.testing.assert_close(encoding.add(both).features, alone)


@pytest.mark.parametrize("name", [name for name in POSITION_ENCODINGS if name != "none"])
def test_places_are_told_apart(name):
    encoding = encoding_of(name)
    tokens = tokens_of_grid(4, 4)
    if encoding.rotation(tokens) is not None:
        told = torch.cat(encoding.rotation(tokens), dim=-1)[0, 0]
    else:
        told = encoding.add(tokens).features[0]
    assert torch.pdist(told).min() > 1e-3
