"""Around selection: making it by hand, exploring, looking with the probe, seeing a
thumbnail beside it, giving a full grid of hidden states back, and refusing configurations that make no
sense."""

import math

import pytest
import torch
from torch import nn

from tests.helpers.models import SELECTIONS, cut, every_selection, tiny_config
from vit_hf import TOKEN_REDUCERS, AdaptiveViTForImageClassification, AdaptiveViTModel
from vit_hf.model.patches import ImagePatches
from vit_hf.model.selectors import as_thumbnails


reducers = pytest.mark.parametrize("reducer", TOKEN_REDUCERS)


def model_of(**fields) -> AdaptiveViTModel:
    return AdaptiveViTModel(tiny_config(**fields)).eval()


class TestSelectedPatches:
    @every_selection
    @pytest.mark.parametrize("training", [False, True])
    def test_equals_the_selectors_own_choice(self, selection, training):
        selector = {"patch_selector": "variance"} if "patch_selector" not in selection else {}
        model = AdaptiveViTForImageClassification(tiny_config(**selection, **selector)).eval()
        images = torch.randn(2, 3, 64, 48)
        chosen = model(images)
        model.vit.selector.train(training)  # whatever it would do
        output = model(images, selected_patches=chosen.selected_patches)
        torch.testing.assert_close(output.logits, chosen.logits, atol=1e-6, rtol=1e-6)
        assert torch.equal(output.selected_patches, chosen.selected_patches)
        assert output.patch_scores is None and output.selection_loss is None

    def test_fewer_by_minus_one_and_mixed_sizes(self):
        model, sizes = model_of(), [(64, 48), (16, 24)]
        images = [torch.randn(3, *size) for size in sizes]
        chosen = torch.tensor([[47, 0, 20, 13], [-1, 5, -1, 2]])
        together = model(**cut(images), selected_patches=chosen)
        assert torch.equal(together.selected_patches, chosen)
        assert torch.equal(together.patch_mask, chosen >= 0)
        first = model(images[0][None], selected_patches=chosen[:1]).last_hidden_state
        torch.testing.assert_close(together.last_hidden_state[:1], first, atol=1e-5, rtol=1e-5)
        second = model(images[1][None], selected_patches=torch.tensor([[5, 2]])).last_hidden_state
        torch.testing.assert_close(together.last_hidden_state[1:, [0, 2, 4]], second, atol=1e-5, rtol=1e-5)

    def test_cut_patches_in_another_order(self):
        model, image = model_of(), torch.randn(3, 40, 48)
        inputs, order = cut([image]), torch.randperm(30)
        for name in ("pixel_values", "patch_coordinates"):
            inputs[name] = inputs[name][:, order]
        chosen = torch.tensor([[3, 29, 11]])
        expected = model(image[None], selected_patches=chosen).last_hidden_state
        got = model(**inputs, selected_patches=chosen)
        torch.testing.assert_close(got.last_hidden_state, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(got.selected_patches, chosen)
        torch.testing.assert_close(
            model(**inputs, restore=True).restored_hidden_state,
            model(image[None], restore=True).restored_hidden_state,
        )

    def test_patches_that_do_not_exist(self):
        model, images = model_of(), torch.randn(2, 3, 64, 48)
        with pytest.raises(ValueError, match=r"selected_patches has 48.*\[8, 6\].*-1 for none"):
            model(images, selected_patches=torch.tensor([[0, 1], [2, 48]]))
        inputs = cut([torch.randn(3, 64, 48), torch.randn(3, 16, 16)])
        with pytest.raises(ValueError, match="selected_patches has 4"):
            model(**inputs, selected_patches=torch.tensor([[4], [4]]))


class TestExploration:
    @pytest.mark.parametrize(("share", "best"), [(0.0, 8), (0.25, 6), (0.5, 4), (1.0, 0)])
    @pytest.mark.parametrize("mixed", [False, True])
    def test_the_share_is_respected(self, share, best, mixed):
        model = model_of(patch_selector={"type": "variance", "exploration": share}, num_selected_patches=8)
        images = [torch.randn(3, 64, 48), torch.randn(3, *((16, 40) if mixed else (64, 48)))]
        inputs = cut(images) if mixed else {"pixel_values": torch.stack(images)}
        greedy = model(**inputs)
        model.train()
        draws = torch.stack([model(**inputs).selected_patches for _ in range(300)])
        assert torch.equal(draws, draws.sort(-1).values)
        for image, (scores, drawn) in enumerate(zip(greedy.patch_scores, draws.transpose(0, 1), strict=True)):
            number = 10 if mixed and image else 48
            always = [patch for patch in range(number) if (drawn == patch).any(1).all()]
            top = scores.argsort(descending=True)[:best].tolist()
            assert set(top) <= set(always) and len(always) <= max(8 if not share else best, best)
            assert all(len(set(row.tolist())) == 8 and 0 <= min(row) <= max(row) < number for row in drawn)
            assert len(drawn.unique()) == (number if share else 8)  # everything has its chance

    def test_only_where_chance_may_play_a_part(self):
        model, images = (
            model_of(patch_selector={"type": "gradient", "exploration": 0.5}),
            torch.randn(2, 3, 64, 64),
        )
        best = model(images).selected_patches
        assert torch.equal(model.train()(images, sample_selection=False).selected_patches, best)
        assert not torch.equal(model(images).selected_patches, best)
        assert not torch.equal(model.eval()(images, sample_selection=True).selected_patches, best)
        assert torch.equal(model(images).selected_patches, best)

    def test_random_draws_where_chance_may_play_a_part(self):
        model, images = model_of(patch_selector="random"), torch.randn(2, 3, 64, 64)
        model.train()
        calm = [model(images, sample_selection=False).selected_patches for _ in range(2)]
        assert torch.equal(*calm)
        assert not torch.equal(model(images).selected_patches, calm[0])
        assert torch.equal(model.eval()(images).selected_patches, calm[0])
        assert not torch.equal(model(images, sample_selection=True).selected_patches, calm[0])


class TestScout:
    @pytest.mark.parametrize("reduction", ["mean", "max", "rollout"])
    @pytest.mark.parametrize("layers", [1, 3])
    def test_equals_the_full_attention_maps_of_a_thumbnail(self, reduction, layers):
        model = model_of(
            patch_selector={"type": "attention", "num_layers": layers, "reduction": reduction},
            num_register_tokens=2,
        )
        images, every = torch.randn(2, 3, 96, 64), torch.arange(16).expand(2, 16)
        thumbnails = nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
        maps = model(thumbnails, selected_patches=every, output_attentions=True).attentions[:layers]
        if reduction == "rollout":
            expected = torch.eye(19)
            for attention in maps:
                expected = (attention.mean(1) + torch.eye(19)) / 2 @ expected
        else:
            expected = {"mean": torch.mean, "max": torch.amax}[reduction](maps[-1], dim=1)
        expected = nn.functional.interpolate(expected[:, 0, 3:].view(2, 1, 4, 4), (12, 8), mode="bilinear")
        torch.testing.assert_close(model(images).patch_scores, expected.flatten(1), atol=1e-5, rtol=1e-5)

    def test_thumbnails_show_the_whole_image(self):
        """Also where their size is no multiple of the patch: 39 pixels are 4 patches of 8, and 7 pixels."""
        images = torch.zeros(1, 3, 64, 64)
        images[..., -6:, :] = 5
        assert as_thumbnails(ImagePatches.from_images(images, 8), (39, 39)).pixels.max() > 1


class TestThumbnailContext:
    @pytest.mark.parametrize(("size", "tokens"), [(True, 16), ((24, 32), 12), (39, 16)])
    def test_number_of_tokens(self, size, tokens):
        model = model_of(patch_selector="variance", thumbnail_context=size, num_register_tokens=2)
        assert model.embeddings.scale_embedding.abs().max() == 0
        images = torch.randn(2, 3, 64, 48)
        output = model(images, output_hidden_states=True)
        assert output.last_hidden_state.shape == (2, 1 + 2 + tokens + 6, 32)
        assert output.token_coordinates.shape == (2, 6, 2)
        with torch.no_grad():
            model.embeddings.scale_embedding.fill_(3)
        moved = model(images, output_hidden_states=True).hidden_states[0] - output.hidden_states[0]
        assert (moved.mean((0, 2)).round() == torch.tensor([0] * 3 + [3] * tokens + [0] * 6)).all()

    @pytest.mark.parametrize(("size", "side"), [(32, 32), (39, 32), (16, 16)])
    def test_coordinates_are_where_a_thumbnail_patch_was_in_the_image(self, size, side):
        """An image of its own coordinates tells them; a thumbnail of half the size is at 0.5, 2.5, ..."""
        places = (torch.arange(64.0) + 0.5) / 8 - 0.5
        image = torch.stack((*torch.meshgrid(places, places, indexing="ij"), torch.zeros(64, 64)))[None]
        thumbnails = ImagePatches.from_images(image, 8).thumbnail_patches((size, size))
        scale = 64 / side
        expected = (torch.arange(side // 8) + 0.5) * scale - 0.5
        assert size != 32 or expected.tolist() == [0.5, 2.5, 4.5, 6.5]
        torch.testing.assert_close(thumbnails.coordinates[0, :: side // 8, 0], expected)
        shown = thumbnails.gather().features.view(-1, 3, 64).mean(-1)[:, :2]
        # Borders are blurred a little.
        torch.testing.assert_close(shown, thumbnails.coordinates[0], atol=0.12, rtol=0)

    def test_the_thumbnail_is_the_image_at_the_coordinates(self):
        """Without positions of its own, a thumbnail of the full size is the image."""
        images = torch.randn(1, 3, 32, 32)
        model = model_of(patch_selector="variance", thumbnail_context=32)
        states = model(images, output_hidden_states=True).hidden_states[0]
        dense = model(images, selected_patches=torch.arange(16)[None], output_hidden_states=True)
        torch.testing.assert_close(states[:, 1:17], dense.hidden_states[0][:, 17:], atol=1e-5, rtol=1e-5)


def last_states(model, inputs):
    """Output, and the last hidden states `(B, K, D)` of all patches that entered, followed by hand, one by
    one."""
    before, attended, after = [], [], []
    hooks = [model.layernorm.register_forward_pre_hook(lambda module, args: after.append(args[0]))]
    for layer in model.layers:
        hooks.append(layer.register_forward_pre_hook(lambda module, args: before.append(args[0])))
        hooks.append(layer.attention.register_forward_hook(lambda module, args, out: attended.append(out[0])))
        hooks.append(layer.register_forward_hook(lambda module, args, out: after.append(out)))
    hooks.append(
        model.embeddings.register_forward_hook(lambda module, args, out: after.append(out.hidden_states))
    )
    output = model(**inputs)
    for hook in hooks:
        hook.remove()
    # What enters a block may be fewer than what left the one before.
    left = [states if torch.is_tensor(states) else states[0] for states in after]
    inside = [entered + attention for entered, attention in zip(before, attended, strict=True)]
    stages = left if model.config.token_reducer == "gumbel" else inside
    states = torch.zeros(*output.selected_patches.shape, 32)
    places = output.token_assignments
    places = [] if places is None else places.unbind(1)
    for image, patch in torch.cartesian_prod(*map(torch.arange, states.shape[:2])).tolist():
        token, dropped = patch, None
        for layer, place in zip(model.config.reduction_layers, places, strict=False):
            num_prefix = left[-1].shape[1] - output.token_coordinates.shape[1]
            dropped = stages[layer][image, num_prefix:][token]
            token = place[image, patch].item()
            if token < 0:
                break
        last = left[-1][image, -output.token_coordinates.shape[1] :]
        states[image, patch] = dropped if token < 0 else last[token]
    return output, states


class TestRestore:
    def test_without_selector_and_reducer_it_is_the_last_hidden_state(self):
        model, images = model_of(num_register_tokens=1), torch.randn(2, 3, 40, 24)
        output = model(images, restore=True)
        assert torch.equal(output.restored_hidden_state, output.last_hidden_state[:, 2:])
        assert model(images).restored_hidden_state is None

    @reducers
    @pytest.mark.parametrize("context", [False, True])
    def test_merged_and_dropped_tokens(self, reducer, context):
        model = model_of(
            token_reducer=reducer, keep_rate=0.5, reduction_layers=[0, 2], thumbnail_context=context
        )
        inputs = {"pixel_values": torch.randn(2, 3, 48, 40)}
        output, states = last_states(model, inputs)
        dropped = (output.token_assignments < 0).any(dim=(0, 2))
        assert dropped.all() == (reducer != "merge")
        restored = model(**inputs, restore=True).restored_hidden_state
        assert restored.shape == (2, 30, 32)
        torch.testing.assert_close(restored, model.layernorm(states), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("reducer", [None, *TOKEN_REDUCERS])
    @pytest.mark.parametrize("context", [False, True])
    def test_patches_that_were_not_selected(self, reducer, context):
        fields = {"token_reducer": reducer, "keep_rate": 0.5, "reduction_layers": [1]} if reducer else {}
        model = model_of(
            patch_selector="variance", num_selected_patches=9, thumbnail_context=context, **fields
        )
        size = 64 if context else 32  # 32 is native: positions are simply added
        inputs = {"pixel_values": torch.randn(2, 3, size, size)}
        output, states = last_states(model, inputs)
        if context:
            seen = output.last_hidden_state[:, 1:17].transpose(1, 2).unflatten(2, (4, 4))
            expected = nn.functional.interpolate(seen, (8, 8), mode="bilinear").flatten(2).transpose(1, 2)
        else:
            kernel, positions = (
                model.embeddings.patch_embeddings.projection,
                model.embeddings.position_encoding,
            )
            embedded = torch.conv2d(inputs["pixel_values"], kernel.weight, kernel.bias, stride=8)
            expected = embedded.flatten(2).transpose(1, 2) + positions.position_embeddings[:, 1:]
            expected = model.layernorm(expected)
        for image in range(2):
            expected[image, output.selected_patches[image]] = model.layernorm(states[image])
        restored = model(**inputs, restore=True).restored_hidden_state
        torch.testing.assert_close(restored, expected, atol=1e-5, rtol=1e-5)

    @every_selection
    def test_mixed_sizes_equal_one_by_one(self, selection):
        model = model_of(**selection)
        images = [torch.randn(3, *size) for size in [(32, 32), (64, 47), (16, 24)]]
        together = model(**cut(images), restore=True).restored_hidden_state
        assert together.shape == (3, 40, 32)
        for index, image in enumerate(images):
            alone = model(image[None], restore=True).restored_hidden_state
            number = alone.shape[1]
            torch.testing.assert_close(together[index, :number], alone[0], atol=1e-5, rtol=1e-5)
            assert (together[index, number:] == 0).all()

    def test_patches_that_never_arrived_have_zeros(self):
        model, inputs, arrived = model_of(), cut([torch.randn(3, 32, 40)]), torch.tensor([2, 7, 19])
        for name in ("pixel_values", "patch_coordinates"):
            inputs[name] = inputs[name][:, arrived]
        inputs["pixel_attention_mask"] = torch.tensor([[1, 0, 1]])
        output = model(**inputs, restore=True)
        expected = torch.zeros(1, 20, 32)
        expected[0, [2, 19]] = output.last_hidden_state[0, [1, 3]]
        assert torch.equal(output.restored_hidden_state, expected)

    @every_selection
    def test_gradients_flow_through(self, selection):
        model = AdaptiveViTModel(tiny_config(**selection)).train()
        images = torch.randn(2, 3, 64, 48, requires_grad=True)
        model(images, restore=True).restored_hidden_state.square().sum().backward()
        patches = images.grad.unfold(2, 8, 8).unfold(3, 8, 8).abs().sum((1, 4, 5))
        assert torch.isfinite(images.grad).all() and (patches > 0).float().mean() > 0.1


def selector(name, **options):
    return {"patch_selector": {"type": name, **options}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"token_reducer": "shrink", "reduction_layers": [1]}, ["'shrink'", *TOKEN_REDUCERS]),
        ({"token_reducer": "merge"}, ["[3, 6, 9]", "from 0 to 2"]),
        ({"token_reducer": "merge", "reduction_layers": [-1]}, ["[-1]", "from 0 to 2"]),
        ({"token_reducer": "merge", "reduction_layers": [1, 1]}, ["[1, 1]", "different"]),
        ({"token_reducer": "merge", "reduction_layers": []}, ["[]", "from 0 to 2"]),
        ({**SELECTIONS["attentive"], "keep_rate": 0.0}, ["keep_rate=0.0", "(0, 1]"]),
        ({**SELECTIONS["attentive"], "keep_rate": 1.5}, ["keep_rate=1.5", "(0, 1]"]),
        ({"keep_rate": 0.5}, ["keep_rate=0.5", "token_reducer", *TOKEN_REDUCERS]),
        (
            {**SELECTIONS["gumbel"], "token_reducer": {"type": "gumbel", "r": 4}},
            ["token_reducer='gumbel'", "no option 'r'", "'ratio_weight'"],
        ),
        ({**SELECTIONS["merge_r"], "token_reducer": {"type": "merge", "r": 0}}, ["r=0", "at least 1"]),
        ({**SELECTIONS["merge"], "keep_rate": 0.4}, ["keep_rate=0.4", "at least 0.5", "reduction_layers"]),
        ({**SELECTIONS["merge_r"], "keep_rate": 0.6}, ["r=3", "keep_rate=0.6", "exclude each other"]),
        ({**SELECTIONS["gumbel"], "hidden_size": 33, "num_attention_heads": 3}, ["even hidden_size", "33"]),
        (selector("policy", exploration=0.5), ["'policy'", "no option 'exploration'", "'entropy_weight'"]),
        (selector("perturbed", exploration=0.5), ["'perturbed'", "no option 'exploration'", "'sigma'"]),
        (selector("variance", exploration=-0.1), ["exploration=-0.1", "[0, 1]"]),
        (selector("variance", exploration=1.1), ["exploration=1.1", "[0, 1]"]),
        (selector("policy", loss_weight=-1.0), ["loss_weight=-1.0", "0 or more"]),
        (
            {**SELECTIONS["gumbel"], "token_reducer": {"type": "gumbel", "token_weight": math.nan}},
            ["token_weight=nan", "0 or more"],
        ),
        (selector("perturbed", sigma=math.nan), ["sigma=nan", "above 0"]),
        ({"position_encoding": {"type": "rotary", "base": math.nan}}, ["base=nan", "above 0"]),
        ({"layerscale_value": math.nan}, ["layerscale_value=nan", "finite"]),
        ({**SELECTIONS["gradient"], "patch_size": 2}, ["'gradient'", "patch_size=2"]),
        (selector("perturbed", sigma=0), ["sigma=0", "above 0"]),
        (selector("perturbed", num_samples=0), ["num_samples=0", "at least 1"]),
        (selector("policy", hidden_size=0), ["hidden_size=0", "at least 1"]),
        (selector("policy", thumbnail_size=[8, 0]), ["thumbnail_size=[8, 0]", "at least one pixel"]),
        (selector("perturbed", thumbnail_size=3), ["thumbnail_size=3", "at least [4, 4]"]),
        (selector("distilled", num_layers=0), ["num_layers=0", "between 1 and"]),
        (selector("attention", reduction="median"), ["reduction", "median", "rollout"]),
    ],
)
def test_errors_name_value_and_legal_values(fields, words):
    with pytest.raises(Exception) as error:  # huggingface_hub wraps the ValueError of a validator
        tiny_config(**fields)
    for word in words:
        assert word in str(error.value)
