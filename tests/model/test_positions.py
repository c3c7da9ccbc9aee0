import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BeitConfig, DINOv3ViTConfig, Swinv2Config
from transformers.models.beit.modeling_beit import BeitRelativePositionBias
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTRopePositionEmbedding
from transformers.models.swinv2.modeling_swinv2 import Swinv2SelfAttention

from tests.helpers.models import cut, tiny_config
from tests.helpers.positions import AXES, tell
from vit_hf import POSITION_ENCODINGS, AdaptiveViTModel
from vit_hf.model.layers import rotate_half_pairs
from vit_hf.model.patches import ImagePatches, PatchTokens, grid_coordinates
from vit_hf.model.positions import KERNELS, interpolation_weights, sinusoid_1d, sinusoid_2d


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
    encoding = encoding_of("rotary", num_attention_heads=2)
    query, key = torch.randn(2, 1, 1, 1, 16)

    def logit(query_place, key_place):
        def rotated(vector, place):
            tokens = PatchTokens(vector[0], torch.tensor([[place]]).float(), torch.tensor([[9, 9]]))
            return rotate_half_pairs(vector, encoding.rotation(tokens, 0))

        return (rotated(query, query_place) * rotated(key, key_place)).sum().item()

    assert logit((1, 2), (3, 7)) == pytest.approx(logit((4, 1), (6, 6)), rel=1e-4)
    assert logit((1, 2), (3, 7)) != pytest.approx(logit((1, 2), (7, 3)), rel=1e-2)
    assert logit((5, 5), (5, 5)) == pytest.approx((query * key).sum().item(), rel=1e-4)


def learned(name: str, **fields):
    """An encoding whose parameters are those of no particular time."""
    encoding = encoding_of(name, **fields)
    with torch.no_grad():
        for value in encoding.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return encoding


every_encoding = pytest.mark.parametrize("name", POSITION_ENCODINGS)


@every_encoding
@pytest.mark.parametrize("grid", [(4, 4), (6, 5), (3, 9)])
def test_subset_equals_full_grid_at_the_same_places(name, grid):
    encoding = learned(name)
    full = tokens_of_grid(*grid, batch=2)
    full.full_grid = grid
    indices = torch.tensor([[3, 11, 12, 10], [0, 1, 7, 14]])
    for layer in (0, 2):
        of_some, of_full = tell(encoding, full.gather(indices), layer), tell(encoding, full, layer)
        assert of_some.keys() == of_full.keys()
        for part, values in of_full.items():
            for image in range(2):
                chosen = values[min(image, len(values) - 1)]
                places = indices[image]
                if part == "bias":
                    places = torch.cat((torch.arange(2), places + 2))
                for axis in AXES[part]:
                    chosen = chosen.index_select(axis - 1, places)
                torch.testing.assert_close(of_some[part][image], chosen, atol=1e-5, rtol=1e-5)


@every_encoding
def test_images_of_a_batch_may_have_different_grids(name):
    encoding = learned(name)
    wide, tall = tokens_of_grid(2, 6), tokens_of_grid(4, 3)
    both = PatchTokens(
        torch.zeros(2, 12, 32),
        torch.cat((wide.coordinates, tall.coordinates)),
        torch.cat((wide.grid, tall.grid)),
    )
    together, alone = tell(encoding, both), [tell(encoding, wide), tell(encoding, tall)]
    for part, values in together.items():
        torch.testing.assert_close(values, torch.cat([one[part] for one in alone]), atol=1e-5, rtol=1e-5)


@every_encoding
def test_places_between_patches_are_between(name):
    """What is said moves a little when a place moves a little: no encoding rounds coordinates."""
    if name == "sinusoidal":
        pytest.skip("over the raster index, which jumps from row to row")
    encoding, tokens = learned(name), tokens_of_grid(6, 6)
    told = tell(encoding, tokens)
    for step, allowed in ((1e-3, 0.05), (0.5, 1e9)):
        moved = tell(
            encoding, PatchTokens(tokens.features, tokens.coordinates + torch.rand(36, 2) * step, tokens.grid)
        )
        differences = [(moved[part] - values).abs().max().item() for part, values in told.items()]
        assert max(differences) < allowed and (max(differences) > 0 or name == "none")


@every_encoding
def test_thumbnail_in_any_order_and_beside_patches(name):
    """At the fractional coordinates of a thumbnail each token is told the same, whoever is beside it."""
    encoding, image = learned(name), ImagePatches.from_images(torch.randn(1, 3, 64, 48), 8)
    thumbnail = image.thumbnail_patches((32, 32))
    assert (thumbnail.coordinates % 1 != 0).any()
    places = torch.cat((thumbnail.coordinates, image.coordinates[:, ::5]), dim=1)
    order = torch.randperm(places.shape[1])
    told, in_order = (
        tell(encoding, PatchTokens(torch.zeros(1, len(order), 32), coordinates, image.grid), num_prefix=0)
        for coordinates in (places, places[:, order])
    )
    for part, values in told.items():
        for axis in AXES[part]:
            values = values.index_select(axis, order)
        torch.testing.assert_close(in_order[part], values, atol=1e-5, rtol=1e-5)


@every_encoding
def test_model_with_thumbnails_of_images_of_different_sizes(name):
    """Together as alone; and the thumbnail is seen."""
    fields = {"position_encoding": name, "patch_selector": "variance", "thumbnail_context": True}
    model = AdaptiveViTModel(tiny_config(**fields)).eval()
    images = [torch.randn(3, 64, 48), torch.randn(3, 24, 40)]
    together = model(**cut(images)).last_hidden_state
    for index, image in enumerate(images):
        alone = model(image[None]).last_hidden_state
        torch.testing.assert_close(together[index], alone[0], atol=1e-5, rtol=1e-5)
    model.config.thumbnail_context = False
    assert not torch.allclose(model(**cut(images)).last_hidden_state[:, 0], together[:, 0], atol=1e-3)


@pytest.mark.parametrize("name", [name for name in POSITION_ENCODINGS if name != "none"])
def test_places_are_told_apart(name):
    tokens = tokens_of_grid(4, 4)
    told = tell(learned(name) if name == "relative_bias" else encoding_of(name), tokens, num_prefix=0)
    if "bias" in told:
        vectors = told["bias"][0].permute(1, 0, 2).flatten(1)
    elif "cosine" in told:
        vectors = torch.cat((told["cosine"], told["sine"]), dim=-1)[0].transpose(0, 1).flatten(1)
    else:
        vectors = told["added"][0]
    assert torch.pdist(vectors).min() > 1e-3


class TestLearned:
    # torch 2.15 repeats the first row where the result is one cell wide.
    @settings(deadline=None, max_examples=40)
    @given(sides, st.integers(2, 9), sides, st.integers(2, 9), st.sampled_from(["bicubic", "bilinear"]))
    def test_antialiased_interpolation_equals_torch(self, source_rows, source_columns, rows, columns, mode):
        table, tokens = torch.randn(1, 3, source_rows, source_columns), tokens_of_grid(rows, columns)
        source, kernel = (source_rows, source_columns), f"{KERNELS[mode]}_antialias"
        ours = interpolation_weights(tokens.coordinates, tokens.grid, source, kernel)
        reference = torch.nn.functional.interpolate(table, (rows, columns), mode=mode, antialias=True)
        got = (ours @ table.flatten(2).transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(got, reference.flatten(2), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("mode", KERNELS)
    @pytest.mark.parametrize("antialias", [False, True])
    @pytest.mark.parametrize("grid", [(3, 2), (7, 5)])
    def test_options_say_how_it_is_interpolated(self, mode, antialias, grid):
        encoding = learned({"type": "learned", "interpolation": mode, "antialias": antialias})
        table = encoding.position_embeddings[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        reference = torch.nn.functional.interpolate(table, grid, mode=mode, antialias=antialias)
        got = encoding.add(tokens_of_grid(*grid)).features - tokens_of_grid(*grid).features
        torch.testing.assert_close(got, reference.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


class TestRotary:
    @pytest.mark.parametrize("grid", [(4, 4), (7, 5)])
    @pytest.mark.parametrize("training", [False, True])
    def test_normalized_is_dinov3(self, grid, training):
        augmentation = {"shift": 0.3, "jitter": 1.5, "rescale": 2.0}
        stock = DINOv3ViTConfig(
            hidden_size=32,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            **{f"pos_embed_{name}": value for name, value in augmentation.items()},
        )
        reference = DINOv3ViTRopePositionEmbedding(stock).train(training)
        encoding = encoding_of(
            {"type": "rotary", "coordinates": "normalized", **augmentation},
        ).train(training)
        torch.manual_seed(3)
        expected = reference(torch.zeros(1, 3, 8 * grid[0], 8 * grid[1]))
        torch.manual_seed(3)
        for ours, theirs in zip(encoding.rotation(tokens_of_grid(*grid), 0), expected, strict=True):
            torch.testing.assert_close(ours[0, 0], theirs, atol=1e-5, rtol=1e-5)

    def test_native_spreads_the_native_grid_over_the_image(self):
        native = encoding_of({"type": "rotary", "coordinates": "native"})
        twice = native.rotation(tokens_of_grid(8, 8), 0)[0][0, 0].view(8, 8, -1)
        once = native.rotation(tokens_of_grid(4, 4), 0)[0][0, 0].view(4, 4, -1)
        torch.testing.assert_close(twice[::2, ::2], once)

    def test_native_may_count_in_another_grid(self):
        reference = encoding_of({"type": "rotary", "coordinates": "native"}, image_size=16)  # 2 x 2 patches
        told = encoding_of({"type": "rotary", "coordinates": "native", "reference_grid": 2})
        of_two = encoding_of({"type": "rotary", "coordinates": "native", "reference_grid": [2, 3]})
        tokens = tokens_of_grid(6, 5)
        assert torch.equal(told.rotation(tokens, 0)[0], reference.rotation(tokens, 0)[0])
        assert not torch.equal(told.rotation(tokens, 0)[0], of_two.rotation(tokens, 0)[0])

    def test_a_table_besides_has_both(self):
        options = {"coordinates": "native", "base": 50.0}
        both = learned({"type": "learned_rotary", **options})
        alone = encoding_of({"type": "rotary", **options})
        table = encoding_of("learned")
        table.load_state_dict(both.state_dict())
        tokens = tokens_of_grid(6, 5)
        assert torch.equal(both.rotation(tokens, 0)[1], alone.rotation(tokens, 0)[1])
        assert torch.equal(both.add(tokens).features, table.add(tokens).features)

    def test_mixed_is_the_published_formula(self):
        encoding = encoding_of({"type": "rotary_mixed", "base": 10.0}, num_attention_heads=2)
        for layer in range(3):
            frequencies = encoding.frequencies[layer]  # (heads, 2, 8)
            # A direction for each head, and one at right angles, with the magnitudes of the axial encoding.
            magnitude = 10.0 ** -(torch.arange(4) / 4)
            torch.testing.assert_close(frequencies.norm(dim=1), magnitude.repeat(2).expand(2, 8))
            first, second = frequencies.chunk(2, dim=-1)
            assert (first * second).sum(dim=1).abs().max() < 1e-6
        directions = encoding.frequencies[:, :, :, 0].flatten(0, 1)
        assert len({round(value, 4) for value in directions[:, 0].tolist()}) == 6
        cosine, _ = encoding.rotation(tokens_of_grid(3, 5), 1)
        for head, row, column, channel in [(0, 2, 3, 1), (1, 1, 4, 6)]:
            along_rows, along_columns = encoding.frequencies[1, head, :, channel].tolist()
            expected = math.cos(along_rows * row + along_columns * column)
            assert cosine[0, head, row * 5 + column, channel].item() == pytest.approx(expected, abs=1e-5)


class TestBias:
    @pytest.mark.parametrize("grid", [(4, 4), (8, 8), (3, 6), (1, 1)])
    @pytest.mark.parametrize("shared", [False, True])
    def test_table_is_that_of_beit(self, grid, shared):
        config = BeitConfig(image_size=32, patch_size=8, num_attention_heads=4, hidden_size=32)
        reference = BeitRelativePositionBias(config)
        encoding = encoding_of({"type": "relative_bias", "shared": shared})
        torch.nn.init.normal_(reference.relative_position_bias_table)
        layer = 0 if shared else 2
        encoding.relative_position_bias_table.data[layer] = reference.relative_position_bias_table.data
        got = encoding.bias(tokens_of_grid(*grid), 2, num_prefix=1)
        torch.testing.assert_close(got, reference(grid), atol=1e-5, rtol=1e-5)

    def test_tokens_without_a_place_are_all_like_cls(self):
        encoding = learned("relative_bias")
        one, three = (encoding.bias(tokens_of_grid(4, 4), 0, number) for number in (1, 3))
        kept = torch.tensor([0, *range(3, 19)])
        for first in range(3):
            kept[0] = first
            assert torch.equal(three[:, :, kept][:, :, :, kept], one)
        assert torch.equal(three[0, :, 0, 1], one[0, :, 0, 0])

    def test_continuous_is_that_of_swin_v2(self):
        side, heads = 4, 4
        config = Swinv2Config(image_size=64, embed_dim=32)
        reference = Swinv2SelfAttention(config, 32, heads, (side, side), [0, 0])
        encoding = encoding_of("relative_bias_continuous")
        theirs = reference.continuous_position_bias_mlp
        encoding.networks[0].load_state_dict(
            {
                name: value
                for name, value in theirs.state_dict().items()
                if name in encoding.networks[0].state_dict()
            }
        )
        table = theirs(reference.relative_coords_table).view(-1, heads)
        expected = table[reference.relative_position_index.view(-1)].view(side**2, side**2, heads)
        expected = 16 * expected.permute(2, 0, 1).sigmoid()
        torch.testing.assert_close(
            encoding.bias(tokens_of_grid(side, side), 0, 0)[0], expected, atol=1e-4, rtol=1e-5
        )

    def test_alibi_falls_with_distance(self):
        encoding = encoding_of("alibi")
        tokens = PatchTokens(
            torch.zeros(1, 2, 32), torch.tensor([[[1.0, 2.0], [4.0, 6.0]]]), torch.tensor([[9, 9]])
        )
        bias = encoding.bias(tokens, 0, num_prefix=1)[0]
        assert bias[:, 1, 2].tolist() == pytest.approx([-5 * 2.0**-slope for slope in (2, 4, 6, 8)])
        assert torch.equal(bias, bias.transpose(1, 2)) and (bias[:, 0] == 0).all()

    @pytest.mark.parametrize(
        "name", [name for name, encoding in POSITION_ENCODINGS.items() if encoding.has_bias]
    )
    def test_flash_attention_is_refused(self, name):
        model = AdaptiveViTModel(tiny_config(position_encoding=name))
        with pytest.raises(ValueError, match=r"Flash Attention|flash"):
            model.set_attn_implementation("flash_attention_2")
        model.config._attn_implementation = "flash_attention_2"  # as if it had been let through
        with pytest.raises(ValueError, match="'sdpa' or 'flex_attention'"):
            model(torch.randn(1, 3, 32, 32))

    @pytest.mark.slow
    @pytest.mark.parametrize("reducer", [None, "merge", "attentive"])
    # torch 2.15 writes C++ that does not compile for a bias of varying shape.
    @torch._dynamo.config.patch(automatic_dynamic_shapes=False)
    @pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
    @pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask")
    def test_flex_attention_equals_eager(self, reducer):
        """With padding, and with tokens of several sizes, each of which has its own way into flex
        attention."""
        reduction = {"token_reducer": reducer, "keep_rate": 0.6, "reduction_layers": [0]} if reducer else {}
        model = AdaptiveViTModel(tiny_config(position_encoding="relative_bias", **reduction)).eval()
        torch.nn.init.normal_(model.embeddings.position_encoding.relative_position_bias_table)
        inputs, states = cut([torch.randn(3, 32, 40), torch.randn(3, 16, 24)]), []
        for implementation in ("eager", "flex_attention"):
            model.set_attn_implementation(implementation)
            with torch.no_grad():
                states.append(model(**inputs).last_hidden_state)
        torch.testing.assert_close(states[1][0], states[0][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states[1][1, :5], states[0][1, :5], atol=1e-5, rtol=1e-5)
