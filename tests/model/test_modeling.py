import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ViTForMaskedImageModeling, ViTModel

from tests.helpers.models import cut, every_selection, ours_from, stock, tiny_config
from vit_hf import (
    PATCH_SELECTORS,
    POSITION_ENCODINGS,
    AdaptiveViTForImageClassification,
    AdaptiveViTForMaskedImageModeling,
    AdaptiveViTModel,
)


selectors = pytest.mark.parametrize("selector", PATCH_SELECTORS)
encodings = pytest.mark.parametrize("encoding", POSITION_ENCODINGS)


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (65, 41), (16, 256), (8, 8)])
def test_equals_vit_of_transformers(tmp_path, size):
    reference = stock()
    ours = ours_from(reference, tmp_path)
    images = torch.randn(2, 3, *size)
    expected = reference(images, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(ours(images).logits, expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(0, 2**16), st.booleans(), st.integers(8, 70), st.integers(8, 70))
def test_equals_vit_of_transformers_in_any_shape(tmp_path_factory, heads, seed, bias, height, width):
    torch.manual_seed(seed)
    reference = stock(num_attention_heads=heads, hidden_size=8 * heads, qkv_bias=bias, hidden_act="gelu_new")
    ours = ours_from(reference, tmp_path_factory.mktemp("stock"))
    images = torch.randn(1, 3, height, width)
    expected = reference(images, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(ours(images).logits, expected, atol=1e-5, rtol=1e-5)


def test_keys_of_transformers_4_load(tmp_path):
    """Checkpoints on the Hub have the names of before version 5."""
    import json
    import re

    from safetensors.torch import load_file, save_file

    reference = stock()
    reference.save_pretrained(tmp_path)
    old_names = [
        (r"vit\.layers\.(\d+)\.attention\.([qkv])_proj", r"vit.encoder.layer.\1.attention.attention.\2_proj"),
        (r"vit\.layers\.(\d+)\.attention\.o_proj", r"vit.encoder.layer.\1.attention.output.dense"),
        (r"vit\.layers\.(\d+)\.mlp\.fc1", r"vit.encoder.layer.\1.intermediate.dense"),
        (r"vit\.layers\.(\d+)\.mlp\.fc2", r"vit.encoder.layer.\1.output.dense"),
        (r"vit\.layers\.", "vit.encoder.layer."),
        ("q_proj", "query"),
        ("k_proj", "key"),
        ("v_proj", "value"),
    ]
    weights = {}
    for name, value in load_file(tmp_path / "model.safetensors").items():
        for new, old in old_names:
            name = re.sub(new, old, name)
        weights[name] = value
    assert "vit.encoder.layer.0.attention.attention.query.weight" in weights
    assert "vit.encoder.layer.2.output.dense.bias" in weights
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "vit"

    ours, info = AdaptiveViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images).logits, reference(images).logits, atol=1e-5, rtol=1e-5)


def test_base_model_and_pooler_equal_vit(tmp_path):
    reference = ViTModel(stock().config).eval()
    reference.save_pretrained(tmp_path)
    ours = AdaptiveViTModel.from_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    expected, got = reference(images), ours(images)
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, atol=1e-5, rtol=1e-5)


def test_masked_image_modeling_equals_vit(tmp_path):
    reference = ViTForMaskedImageModeling(stock().config).eval()
    reference.vit.embeddings.mask_token.data.normal_()
    reference.save_pretrained(tmp_path)
    ours = AdaptiveViTForMaskedImageModeling.from_pretrained(tmp_path)
    images, masked = torch.randn(2, 3, 32, 32), torch.rand(2, 16) < 0.5
    expected, got = reference(images, bool_masked_pos=masked), ours(images, bool_masked_pos=masked)
    torch.testing.assert_close(got.reconstruction, expected.reconstruction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-5, rtol=1e-5)


def test_masked_image_modeling_of_other_sizes():
    model = AdaptiveViTForMaskedImageModeling(tiny_config()).eval()
    images, masked = torch.randn(2, 3, 45, 24), torch.rand(2, 15) < 0.5
    output = model(images, bool_masked_pos=masked)
    assert output.reconstruction.shape == (2, 3, 40, 24)
    pixels = (
        masked.view(2, 5, 3).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand(-1, 3, -1, -1)
    )
    expected = (images[:, :, :40] - output.reconstruction).abs()[pixels].mean()
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-4)


def test_not_square_image_and_patch_sizes():
    model = AdaptiveViTForImageClassification(tiny_config(image_size=(32, 48), patch_size=(8, 12))).eval()
    native = model(torch.randn(1, 3, 32, 48), interpolate_pos_encoding=False)
    assert native.spatial_shapes.tolist() == [[4, 4]]
    assert model(torch.randn(1, 3, 50, 100)).spatial_shapes.tolist() == [[6, 8]]


@selectors
def test_selection_computes_on_k_patches(selector):
    model = AdaptiveViTForImageClassification(tiny_config(patch_selector=selector)).eval()
    output = model(torch.randn(2, 3, 64, 40), output_hidden_states=True, output_attentions=True)
    assert output.selected_patches.shape == (2, 6) and output.selected_patches.dtype == torch.int64
    assert output.patch_scores.shape == (2, 40)
    assert output.patch_coordinates.shape == (2, 6, 2)
    assert output.spatial_shapes.tolist() == [[8, 5], [8, 5]]
    assert [state.shape for state in output.hidden_states] == [(2, 7, 32)] * 4
    assert [weights.shape for weights in output.attentions] == [(2, 4, 7, 7)] * 3
    kept_scores = output.patch_scores.gather(1, output.selected_patches)
    assert (kept_scores.min(1).values >= output.patch_scores.topk(7, 1).values[:, -1]).all()
    row, column = output.patch_coordinates.unbind(-1)
    assert torch.equal((row * 5 + column).long(), output.selected_patches)


@selectors
def test_keeping_all_patches_is_the_dense_model(selector):
    dense = AdaptiveViTForImageClassification(tiny_config()).eval()
    adaptive = AdaptiveViTForImageClassification(
        tiny_config(patch_selector=selector, num_selected_patches=1.0)
    ).eval()
    adaptive.load_state_dict(dense.state_dict(), strict=False)  # but for what selectors learn
    if selector == "cross_attention":
        torch.nn.init.zeros_(adaptive.vit.selector.query)  # attends to all alike
    images = torch.randn(2, 3, 40, 64)
    torch.testing.assert_close(adaptive(images).logits, dense(images).logits, atol=1e-5, rtol=1e-5)


@selectors
def test_only_kept_patches_matter(selector):
    """Pixels of dropped patches change nothing, as long as the choice stays."""
    model = AdaptiveViTForImageClassification(tiny_config(patch_selector=selector)).eval()
    images = torch.randn(1, 3, 64, 64)
    kept = model(images)
    given = cut([images[0]])
    chosen = kept.selected_patches[0]
    output = model(
        given["pixel_values"][:, chosen],
        patch_coordinates=kept.patch_coordinates,
        spatial_shapes=kept.spatial_shapes,
    )
    assert output.patch_scores is None
    assert torch.equal(output.selected_patches, kept.selected_patches)
    torch.testing.assert_close(output.logits, kept.logits, atol=1e-5, rtol=1e-5)


def test_attention_selector_finds_what_the_cls_token_looks_at(tmp_path):
    """Scores equal the CLS row of a full attention map of the same block on the thumbnail."""
    reference = stock()
    model = ours_from(reference, tmp_path, patch_selector="attention", num_selected_patches=6)
    images = torch.randn(2, 3, 32, 32)  # the native size is the thumbnail
    maps = reference.set_attn_implementation("eager") or reference(images, output_attentions=True).attentions
    expected = maps[1].mean(1)[:, 0, 1:]
    torch.testing.assert_close(model(images).patch_scores, expected, atol=1e-5, rtol=1e-5)
    # Any other size: the map of a thumbnail, interpolated; what is beyond whole patches is not looked at.
    large = torch.randn(2, 3, 99, 70)
    thumbnails = torch.nn.functional.interpolate(
        large[..., :96, :64], (32, 32), mode="bilinear", antialias=True
    )
    on_thumbnails = (
        reference(thumbnails, output_attentions=True).attentions[1].mean(1)[:, 0, 1:].view(2, 1, 4, 4)
    )
    upsampled = torch.nn.functional.interpolate(on_thumbnails, (12, 8), mode="bilinear").flatten(1)
    torch.testing.assert_close(model(large).patch_scores, upsampled, atol=1e-5, rtol=1e-5)


@encodings
@every_selection
def test_batch_of_mixed_sizes_equals_one_by_one(encoding, selection):
    model = AdaptiveViTForImageClassification(
        tiny_config(**selection, position_encoding=encoding, num_register_tokens=2)
    ).eval()
    images = [torch.randn(3, *size) for size in [(32, 32), (64, 47), (16, 24), (87, 16)]]
    together = model(**cut(images))
    for index, image in enumerate(images):
        alone = model(image[None])
        count = alone.selected_patches.shape[1]
        torch.testing.assert_close(together.logits[index], alone.logits[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(together.selected_patches[index, :count], alone.selected_patches[0])
        assert (together.selected_patches[index, count:] == -1).all()


@every_selection
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_share_of_mixed_sizes_equals_one_by_one(selection, pooling):
    selects = "patch_selector" in selection
    share = {"num_selected_patches": 0.35} if selects else {}
    model = AdaptiveViTForImageClassification(tiny_config(**selection, **share, pooling=pooling)).eval()
    # 90 patches: 31.5 of them, where rounding in float32 would differ from rounding in Python.
    images = [torch.randn(3, *size) for size in [(39, 32), (64, 47), (16, 24), (80, 72)]]
    together = model(**cut(images))
    kept = [6, 14, 2, 31] if selects else [16, 40, 6, 90]
    assert (together.selected_patches >= 0).sum(1).tolist() == kept
    for index, image in enumerate(images):
        torch.testing.assert_close(together.logits[index], model(image[None]).logits[0], atol=1e-5, rtol=1e-5)


@every_selection
def test_batch_equals_one_by_one(selection):
    model = AdaptiveViTForImageClassification(tiny_config(**selection)).eval()
    images = torch.randn(3, 3, 56, 48)
    alone = torch.cat([model(image[None]).logits for image in images])
    torch.testing.assert_close(model(images).logits, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", [7, 0.1])
def test_relaxation_keeps_more_while_training_and_nothing_else(number):
    model = AdaptiveViTForImageClassification(
        tiny_config(patch_selector="variance", num_selected_patches=number)
    )
    images = torch.randn(2, 3, 64, 64)
    target = 7 if number == 7 else 6
    for dense_fraction, expected in [(0.0, target), (0.5, target + round((64 - target) / 2)), (1.0, 64)]:
        model.set_dense_fraction(dense_fraction)
        assert model.train()(images).selected_patches.shape[1] == expected
        assert model(**cut(list(images))).selected_patches.shape[1] in (expected, expected + 1)
        assert model.eval()(images).selected_patches.shape[1] == target
    with pytest.raises(ValueError, match=r"1\.5"):
        model.set_dense_fraction(1.5)


@encodings
@every_selection
def test_gradients_reach_every_parameter(encoding, selection):
    model = AdaptiveViTForImageClassification(
        tiny_config(**selection, position_encoding=encoding, num_register_tokens=1, layerscale_value=0.5)
    ).train()
    model(torch.randn(4, 3, 64, 64), labels=torch.tensor([0, 4, 1, 1])).loss.backward()
    for name, value in model.named_parameters():
        # What is added to every key alike changes no attention.
        assert value.grad is not None and (value.grad.abs().sum() > 0 or "k_proj.bias" in name), name


@pytest.mark.parametrize(
    "fields", [{"norm_type": "rmsnorm"}, {"layerscale_value": 0.1}, {"num_register_tokens": 3}]
)
def test_block_options(fields):
    torch.manual_seed(1)
    plain = AdaptiveViTForImageClassification(tiny_config()).eval()
    torch.manual_seed(1)
    other = AdaptiveViTForImageClassification(tiny_config(**fields)).eval()
    images = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(plain(images).logits, other(images).logits, atol=1e-3)


def test_stochastic_depth_only_in_training():
    model = AdaptiveViTForImageClassification(tiny_config(drop_path_rate=0.5))
    images = torch.randn(8, 3, 32, 32)
    model.train()
    assert not torch.equal(model(images).logits, model(images).logits)
    model.eval()
    assert torch.equal(model(images).logits, model(images).logits)
    assert [layer.drop_path and layer.drop_path.rate for layer in model.vit.layers] == [None, 0.25, 0.5]


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("single_label_classification", torch.tensor([1, 4])),
        ("single_label_classification", torch.tensor([1, -100])),
        ("multi_label_classification", torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])),
        (None, torch.tensor([1, 4])),
        ("regression", torch.randn(2, 5)),
    ],
)
def test_loss_equals_vit(tmp_path, problem, labels):
    reference = stock(problem_type=problem)
    ours = ours_from(reference, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images, labels=labels).loss, reference(images, labels=labels).loss)


def test_class_probabilities_as_labels():
    model = AdaptiveViTForImageClassification(tiny_config(problem_type="single_label_classification")).eval()
    images, hard = torch.randn(2, 3, 32, 32), torch.tensor([1, 4])
    soft = torch.nn.functional.one_hot(hard, 5).float()
    torch.testing.assert_close(model(images, labels=soft).loss, model(images, labels=hard).loss)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_whole_numbers_as_labels(problem):
    model = AdaptiveViTForImageClassification(tiny_config(problem_type=problem)).eval()
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 1]])
    torch.testing.assert_close(model(images, labels=labels).loss, model(images, labels=labels.float()).loss)


class TestBadInput:
    @pytest.fixture
    def model(self):
        return AdaptiveViTForImageClassification(tiny_config(patch_selector="variance")).eval()

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((1, 3, 7, 64), "smaller than one patch"),
            ((1, 1, 64, 64), "1 channels.*num_channels=3"),
            ((3, 64, 64), "cut patches.*batch dimension"),
            ((64, 64), "shape"),
            ((1, 3, 8, 16), "num_selected_patches=6 .* 2 patches"),
        ],
    )
    def test_shapes(self, model, shape, message):
        with pytest.raises(ValueError, match=message):
            model(torch.randn(*shape))

    def test_cut_patches_of_the_wrong_length(self, model):
        with pytest.raises(ValueError, match=r"192 values.*\(1, 4, 100\)"):
            model(
                torch.randn(1, 4, 100),
                patch_coordinates=torch.zeros(1, 4, 2),
                spatial_shapes=torch.tensor([[2, 2]]),
            )

    @pytest.mark.parametrize("selector", [None, *PATCH_SELECTORS])
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_not_finite(self, selector, value):
        model = AdaptiveViTForImageClassification(
            tiny_config(patch_selector=selector, num_selected_patches=None if selector is None else 64)
        ).eval()
        images = torch.randn(1, 3, 64, 64)
        images[0, 0, 30, 30] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            model(images)

    @pytest.mark.parametrize(
        ("problem", "label", "legal"),
        [
            ("multi_label_classification", 7.0, "0 to 1"),
            ("multi_label_classification", torch.nan, "0 to 1"),
            ("single_label_classification", 1.5, "0 to 1"),
            ("regression", torch.inf, "finite"),
        ],
    )
    def test_labels_that_are_no_probabilities(self, problem, label, legal):
        model = AdaptiveViTForImageClassification(tiny_config(problem_type=problem))
        with pytest.raises(ValueError, match=f"Label {label} .*{legal}"):
            model(torch.randn(1, 3, 32, 32), labels=torch.tensor([[0, 0, 1, label, 0]]))

    @pytest.mark.parametrize("number", [0, -3, 65, 1.5, -0.2])
    @pytest.mark.parametrize("whole", [True, False])
    def test_numbers_set_after_the_model_was_built(self, model, number, whole):
        model.config.num_selected_patches = number
        image = torch.randn(3, 64, 64)
        inputs = {"pixel_values": image[None]} if whole else {**cut([image]), "pixel_attention_mask": None}
        with pytest.raises(ValueError, match=f"num_selected_patches={number}"):
            model(**inputs)

    @pytest.mark.parametrize("name", ["patch_coordinates", "spatial_shapes", "pixel_attention_mask"])
    def test_shapes_of_what_comes_with_cut_patches(self, model, name):
        inputs = cut([torch.randn(3, 64, 64), torch.randn(3, 64, 64)])
        inputs[name] = inputs[name][:1]
        with pytest.raises(ValueError, match=name):
            model(**inputs)

    def test_masks_of_the_wrong_length(self):
        model = AdaptiveViTModel(tiny_config(), use_mask_token=True)
        with pytest.raises(ValueError, match=r"bool_masked_pos.*\(1, 15\).*\(1, 16\)"):
            model(torch.randn(1, 3, 32, 32), bool_masked_pos=torch.ones(1, 15))

    @pytest.mark.parametrize("label", [5, -1])
    def test_labels_outside_the_classes(self, model, label):
        with pytest.raises(ValueError, match=rf"Label {label} .*0\.\.4"):
            model(torch.randn(1, 3, 64, 64), labels=torch.tensor([label]))

    def test_other_sizes_when_interpolation_is_forbidden(self, model):
        with pytest.raises(ValueError, match=r"64x64.*image_size=32"):
            model(torch.randn(1, 3, 64, 64), interpolate_pos_encoding=False)

    def test_masks_without_a_mask_token(self):
        with pytest.raises(ValueError, match="mask token"):
            AdaptiveViTModel(tiny_config())(torch.randn(1, 3, 32, 32), bool_masked_pos=torch.ones(1, 16))

    def test_masked_image_modeling_needs_all_patches(self):
        with pytest.raises(ValueError, match="patch_selector=None"):
            AdaptiveViTForMaskedImageModeling(tiny_config(patch_selector="variance"))
        with pytest.raises(ValueError, match="thumbnail_context=False"):
            AdaptiveViTForMaskedImageModeling(tiny_config(thumbnail_context=True))

    def test_masked_image_modeling_needs_the_stride_of_the_patches(self):
        model = AdaptiveViTForMaskedImageModeling(tiny_config(encoder_stride=16))
        with pytest.raises(ValueError, match="encoder_stride=16"):
            model(torch.randn(1, 3, 32, 32), bool_masked_pos=torch.ones(1, 16))

    def test_misspelt_arguments(self, model):
        with pytest.raises(TypeError, match="patch_coordinate"):
            model(torch.randn(1, 3, 64, 64), patch_coordinate=torch.zeros(1, 64, 2))


def test_a_subclass_of_any_name_has_the_loss_of_its_parent():
    class Mine(AdaptiveViTForImageClassification):
        pass

    inputs = {"pixel_values": torch.rand(2, 3, 32, 32), "labels": torch.tensor([0, 4])}
    losses = []
    for model_class in (Mine, AdaptiveViTForImageClassification):
        torch.manual_seed(0)
        losses.append(model_class(tiny_config()).eval()(**inputs).loss)
    torch.testing.assert_close(*losses)
