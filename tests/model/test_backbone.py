"""AdaptiveViT under transformers' detection and segmentation models."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoBackbone,
    AutoConfig,
    Dinov2Backbone,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    ResNetConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from tests.helpers.models import cut, every_selection, stock, tiny_config
from vit_hf import AdaptiveViTBackbone, AdaptiveViTForImageClassification, AdaptiveViTModel, convert


ALL = ["stem", "stage1", "stage2", "stage3"]


def backbone(**fields) -> AdaptiveViTBackbone:
    return AdaptiveViTBackbone(tiny_config(**fields)).eval()


class TestInterface:
    def test_auto_class_and_channels(self):
        model = AutoBackbone.from_config(tiny_config(out_features=["stage1", "stage3"]))
        assert type(model) is AdaptiveViTBackbone
        assert model.out_indices == [1, 3] and model.channels == [32, 32]
        maps = model(torch.randn(2, 3, 64, 48)).feature_maps
        assert [tuple(values.shape) for values in maps] == [(2, 32, 8, 6)] * 2

    def test_last_stage_by_default(self):
        model = backbone()
        assert model.out_features == ["stage3"]
        images = torch.randn(1, 3, 40, 24)
        [values] = model(images).feature_maps
        expected = AdaptiveViTModel.forward(model, images).last_hidden_state[:, 1:]
        torch.testing.assert_close(values.flatten(2).transpose(1, 2), expected)

    def test_model_cut_short_needs_no_other_stages(self, tmp_path):
        AdaptiveViTModel(tiny_config()).save_pretrained(tmp_path)
        shorter = AdaptiveViTModel.from_pretrained(tmp_path, num_hidden_layers=2)
        assert shorter.config.stage_names[-1] == "stage2"

    @pytest.mark.parametrize(
        "fields", [{"out_features": ["stage4"]}, {"out_indices": [5]}, {"out_features": ["x"]}]
    )
    def test_stage_that_does_not_exist(self, fields):
        with pytest.raises((ValueError, StrictDataclassError), match=r"out_(features|indices) must be"):
            tiny_config(**fields)

    def test_hidden_states_and_attentions_only_if_asked_for(self):
        model, images = backbone(), torch.randn(1, 3, 32, 32)
        outputs = model(images)
        assert outputs.hidden_states is None and outputs.attentions is None
        model.set_attn_implementation("eager")
        outputs = model(images, output_hidden_states=True, output_attentions=True)
        assert len(outputs.hidden_states) == 4 and len(outputs.attentions) == 3
        assert isinstance(model(images, return_dict=False), tuple)

    def test_saved_and_loaded(self, tmp_path):
        model = backbone(out_indices=[0, 2], patch_selector="variance")
        model.save_pretrained(tmp_path)
        again = AdaptiveViTBackbone.from_pretrained(tmp_path)
        assert again.out_features == ["stem", "stage2"]
        images = torch.randn(1, 3, 64, 64)
        for ours, theirs in zip(again(images).feature_maps, model(images).feature_maps, strict=True):
            assert torch.equal(ours, theirs)
        assert AutoConfig.from_pretrained(tmp_path).auto_map["AutoBackbone"].endswith("AdaptiveViTBackbone")

    def test_weights_of_a_classifier_and_of_a_stock_vit(self, tmp_path):
        AdaptiveViTForImageClassification(tiny_config()).save_pretrained(tmp_path / "ours")
        stock().save_pretrained(tmp_path / "stock")
        for name in ("ours", "stock"):
            model, info = AdaptiveViTBackbone.from_pretrained(
                tmp_path / name, out_features=["stage1"], output_loading_info=True
            )
            assert not info["missing_keys"]
            reference = AdaptiveViTForImageClassification.from_pretrained(tmp_path / name).vit
            assert torch.equal(model.layers[0].mlp.fc1.weight, reference.layers[0].mlp.fc1.weight)

    def test_a_configuration_is_left_as_it_was(self):
        config = tiny_config()
        before = config.to_dict()
        AdaptiveViTBackbone(config)
        assert config.to_dict() == before

    def test_learned_selection_is_for_a_classifier(self, caplog):
        model = backbone(patch_selector="distilled").train()
        assert "add selection_loss of this model's outputs yourself" in caplog.text
        model(torch.randn(1, 3, 64, 64)).selection_loss.backward()
        assert model.selector.output.weight.grad.abs().sum() > 0

    def test_mixed_grids_have_no_common_map(self):
        with pytest.raises(ValueError, match=r"\[\[8, 6\], \[2, 3\]\]"):
            backbone()(**cut([torch.randn(3, 64, 48), torch.randn(3, 16, 24)]))


class TestFeatureMaps:
    @pytest.mark.parametrize("reshape", [True, False])
    @pytest.mark.parametrize("normed", [True, False])
    def test_equal_those_of_dinov2(self, reshape, normed):
        config = Dinov2Config(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            out_features=ALL,
            apply_layernorm=normed,
            reshape_hidden_states=reshape,
            initializer_range=0.2,
        )
        theirs = Dinov2Backbone(config).eval()
        converted = convert(theirs)[0]
        converted.config.out_features = ALL
        converted.config.apply_layernorm, converted.config.reshape_hidden_states = normed, reshape
        ours = AdaptiveViTBackbone(converted.config).eval()
        ours.load_state_dict(converted.state_dict())
        images = torch.randn(2, 3, 32, 48)
        for got, expected in zip(ours(images).feature_maps, theirs(images).feature_maps, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    @every_selection
    def test_full_grid_whatever_is_selected(self, selection):
        model, images = backbone(**selection, out_features=ALL), torch.randn(2, 3, 64, 48)
        maps = model(images).feature_maps
        assert [tuple(values.shape) for values in maps] == [(2, 32, 8, 6)] * 4
        assert all(values.isfinite().all() for values in maps)

    def test_kept_patches_have_their_state_and_others_their_embedding(self):
        fields = {"patch_selector": "gradient", "apply_layernorm": False}
        model, images = backbone(**fields, out_features=ALL), torch.randn(2, 3, 64, 48)
        outputs = model(images, output_hidden_states=True)
        kept = AdaptiveViTModel.forward(model, images).selected_patches.unsqueeze(-1).expand(-1, -1, 32)
        stem = outputs.feature_maps[0].flatten(2).transpose(1, 2)
        for values, states in zip(outputs.feature_maps, outputs.hidden_states, strict=True):
            values = values.flatten(2).transpose(1, 2)
            torch.testing.assert_close(values.gather(1, kept), states[:, 1:])
            unseen = torch.ones_like(values).scatter(1, kept, 0).bool()
            assert torch.equal(values[unseen], stem[unseen])

    def test_patches_dropped_between_stages_keep_their_last_state(self):
        fields = {"token_reducer": "attentive", "keep_rate": 0.5, "reduction_layers": [1]}
        model, images = backbone(**fields, out_features=ALL, apply_layernorm=False), torch.randn(1, 3, 64, 64)
        outputs = model(images, output_hidden_states=True)
        maps = [values.flatten(2).transpose(1, 2)[0] for values in outputs.feature_maps]
        for before in (0, 1):  # nothing is gone yet
            torch.testing.assert_close(maps[before], outputs.hidden_states[before][0, 1:])
        gone = AdaptiveViTModel.forward(model, images).token_assignments[0, 0] < 0
        assert 0 < gone.sum() < 64
        assert torch.equal(maps[2][gone], maps[3][gone])
        assert not torch.isclose(maps[2][~gone], maps[3][~gone]).all(1).any()

    def test_selected_by_the_data_loader(self):
        """All patches, in another order, and a part of them: the same map, with zeros for what is absent."""
        model, images = backbone(), torch.randn(2, 3, 48, 40)
        expected = model(images).feature_maps[0]
        torch.testing.assert_close(model(**cut(list(images))).feature_maps[0], expected, atol=1e-5, rtol=1e-5)
        part = {
            name: values[:, :7] if name != "spatial_shapes" else values
            for name, values in cut(list(images)).items()
        }
        some = model(**part).feature_maps[0].flatten(2)
        assert (some[..., 7:] == 0).all() and (some[..., :7] != 0).all()


class TestHeads:
    @pytest.mark.parametrize("selection", [{}, {"patch_selector": "variance", "thumbnail_context": True}])
    def test_segments_and_learns_under_upernet(self, tmp_path, selection):
        config = UperNetConfig(
            backbone_config=tiny_config(out_features=ALL, **selection),
            num_labels=3,
            hidden_size=16,
            pool_scales=[1, 2],
            use_auxiliary_head=False,
        )
        model = UperNetForSemanticSegmentation(config)
        images, labels = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
        outputs = model(images, labels=labels)
        assert outputs.logits.shape == (2, 3, 64, 64)
        outputs.loss.backward()
        assert all(
            values.grad is not None
            for name, values in model.backbone.named_parameters()
            if "layers.0" in name
        )
        model.save_pretrained(tmp_path)
        again = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(again(images).logits, model.eval()(images).logits)

    def test_depth_under_dpt(self):
        config = DPTConfig(
            backbone_config=tiny_config(
                out_features=ALL, reshape_hidden_states=False, patch_selector="variance"
            ),
            is_hybrid=False,
            hidden_size=32,
            patch_size=8,
            image_size=32,
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            reassemble_factors=[4, 2, 1, 0.5],
            readout_type="ignore",
        )
        depth = DPTForDepthEstimation(config).eval()(torch.randn(1, 3, 32, 32)).predicted_depth
        assert depth.ndim == 3 and depth.isfinite().all()

    def test_hybrid_under_upernet(self):
        """A CNN under the encoder under a decoder; the maps have the grid of the CNN's."""
        cnn = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        fields = {"backbone_config": cnn, "out_features": ALL, "patch_selector": "variance"}
        assert backbone(**fields)(torch.randn(1, 3, 64, 48)).feature_maps[-1].shape == (1, 32, 8, 6)
        config = UperNetConfig(
            backbone_config=tiny_config(**fields),
            num_labels=3,
            hidden_size=16,
            pool_scales=[1, 2],
            use_auxiliary_head=False,
        )
        model = UperNetForSemanticSegmentation(config).eval()
        assert model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 3, 64, 64)

    def test_exports(self):
        model = backbone(out_features=["stage1", "stage3"], patch_selector="variance")
        images = torch.randn(2, 3, 64, 48)
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},), strict=False)
        more = torch.randn(3, 3, 64, 48)
        for got, expected in zip(program.module()(more).feature_maps, model(more).feature_maps, strict=True):
            torch.testing.assert_close(got, expected)
