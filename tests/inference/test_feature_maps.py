"""Maps put together from tiles: weights that sum to one, nothing bent, no seams."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from transformers import (
    BitBackbone,
    BitConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ViTForImageClassification,
)
from transformers.modeling_outputs import BaseModelOutput

from tests.helpers.classifiers import PROCESSOR, convnext, ours, picture, resnet, swin, vit
from tests.helpers.models import SELECTIONS, tiny_config
from vit_hf import (
    AdaptiveViTBackbone,
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
    AdaptiveViTModel,
    predict_tiled,
)
from vit_hf.inference.feature_maps import BlendedAxis, BlendedFeatures, blend_values
from vit_hf.inference.tile_grid import TileGrid
from vit_hf.inference.tiles import feature_map_tiled


AS_IT_IS = AdaptiveViTImageProcessor(do_resize=False)


class TestAxis:
    @settings(deadline=None, max_examples=300)
    @given(
        length=st.integers(1, 300),
        tile=st.integers(1, 100),
        overlap=st.floats(0, 0.95),
        num_cells=st.integers(1, 400),
        num_values=st.integers(1, 9),
    )
    def test_weights_sum_to_one(self, length, tile, overlap, num_cells, num_values):
        grid = TileGrid.cover((length, 1), tile, overlap)
        axis = BlendedAxis(grid.tops, grid.tile_size[0], length, num_cells, num_values)
        total = torch.zeros(num_cells, dtype=torch.float64)
        for index, start in enumerate(grid.tops):
            cells, weights = axis.weights(index)
            total[cells] += weights.sum(dim=1)
            assert (weights >= 0).all()
            centres = (np.arange(num_cells)[cells] + 0.5) * length / num_cells
            assert (centres >= start - 1e-9).all() and (centres <= start + grid.tile_size[0] + 1e-9).all()
        torch.testing.assert_close(total, torch.ones_like(total))


def sampled(grid: TileGrid, size: tuple[int, int], field) -> BlendedFeatures:
    """A map of two channels from tiles that know `field(rows, columns)` in pixels at the centres of their
    values."""
    blended = BlendedFeatures(grid, (1, *size))
    for index, (top, left, height, width) in enumerate(grid.coordinates.tolist()):
        rows, columns = (torch.arange(number) + 0.5 for number in size)
        values = field(top + rows[:, None] * height / size[0], left + columns * width / size[1])
        blended.add(index, values.float()[None])
    return blended


class TestFeatures:
    @pytest.mark.parametrize("image_size", [(96, 160), (100, 133), (31, 70)])
    @pytest.mark.parametrize("overlap", [0.0, 0.2, 0.25, 0.6])
    def test_a_constant_stays(self, image_size, overlap):
        grid = TileGrid.cover(image_size, 32, overlap)
        found = sampled(grid, (4, 4), lambda rows, columns: rows * 0 + columns * 0 + 7.5).feature_map
        torch.testing.assert_close(found, torch.full_like(found, 7.5))

    # Where tiles share less than a patch and do not begin with one, there is nothing between their values.
    @pytest.mark.parametrize(
        ("image_size", "overlap"),
        [
            ((96, 160), 0.0),
            *[
                (size, overlap)
                for size in [(96, 160), (104, 136), (1000, 32)]
                for overlap in (0.25, 0.3, 0.6)
            ],
        ],
    )
    def test_a_linear_field_stays(self, image_size, overlap):
        grid = TileGrid.cover(image_size, 32, overlap)
        blended = sampled(grid, (4, 4), lambda rows, columns: 0.3 * rows - 0.1 * columns)
        size = tuple(side // 8 for side in image_size)
        assert blended.size == size
        rows, columns = ((torch.arange(number) + 0.5) * 8 for number in size)
        torch.testing.assert_close(
            blended.feature_map[0], 0.3 * rows[:, None] - 0.1 * columns, rtol=1e-4, atol=1e-3
        )

    def test_no_seams(self):
        # Tiles that disagree by up to one: without blending, neighbours in the map would, too.
        grid = TileGrid.cover((256, 256), 64, 0.5)
        blended = BlendedFeatures(grid, (1, 16, 16))
        for index in range(len(grid)):
            blended.add(index, torch.full((1, 16, 16), float(index % 2)))
        found = blended.feature_map[0]
        assert found.max() - found.min() > 0.9
        # The raised cosine over 7 cells between centres is nowhere steeper than pi / 2 / 7.
        assert found.diff(dim=1).abs().max() < 0.26 and found.diff(dim=0).abs().max() < 0.26

    def test_in_a_file(self, tmp_path):
        model, image = vit(), picture(100, 70)
        expected = predict_tiled(model, image, tile=32, image_processor=PROCESSOR, feature_maps=True)
        found = predict_tiled(
            model,
            image,
            tile=32,
            image_processor=PROCESSOR,
            feature_maps=True,
            feature_map_file=tmp_path / "map.npy",
        )
        torch.testing.assert_close(found.feature_map, expected.feature_map, rtol=0, atol=0)
        stored = np.load(tmp_path / "map.npy", mmap_mode="r")
        assert stored.shape == (12, 9, 16) and stored.dtype == np.float32
        np.testing.assert_array_equal(stored.transpose(2, 0, 1), expected.feature_map)


class TestValues:
    @settings(deadline=None, max_examples=60)
    @given(
        st.tuples(st.integers(1, 200), st.integers(1, 200)),
        st.integers(1, 60),
        st.floats(0, 0.9),
        st.tuples(st.integers(1, 50), st.integers(1, 50)),
    )
    def test_a_constant_stays(self, image_size, tile, overlap, size):
        grid = TileGrid.cover(image_size, tile, overlap)
        found = blend_values(torch.full((len(grid),), 0.3), grid, size)
        torch.testing.assert_close(found, torch.full(size, 0.3))

    def test_between_tiles_it_rises_steadily(self):
        grid = TileGrid.cover((64, 64 * 9), 64, 0.5)
        found = blend_values(torch.arange(len(grid)).float(), grid, (1, 64 * 9))[0]
        steps = found.diff()
        # By 1 in 32 pixels on average, and a raised cosine at most pi / 2 times as fast.
        assert (steps >= -1e-6).all() and steps.max() < 1.05 * torch.pi / 2 / 32
        # At the centre of a tile, that tile alone counts.
        for index, left in enumerate(grid.lefts):
            assert found[left + 31 : left + 33].mean() == pytest.approx(index, abs=0.01)

    def test_small_maps_leave_out_no_tile(self):
        grid = TileGrid.cover((320, 320), 32, 0.0)
        for index in range(len(grid)):
            values = torch.zeros(len(grid))
            values[index] = 1
            found = blend_values(values, grid, (3, 3))
            assert found.sum() == pytest.approx(9 / 100, rel=0.45)


class PatchwiseConfig(PreTrainedConfig):
    model_type = "patchwise"


class Patchwise(PreTrainedModel):
    """Sees each patch of 8x8 by itself."""

    config_class = PatchwiseConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.convolution = nn.Conv2d(3, 6, 8, stride=8)
        self.post_init()

    def forward(self, pixel_values):
        return BaseModelOutput(last_hidden_state=self.convolution(pixel_values).tanh())


def per_patch_vit() -> ViTForImageClassification:
    model = vit(num_hidden_layers=0)
    nn.init.zeros_(model.vit.embeddings.position_embeddings)
    return model


def whole(model, image: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        states = model(**AS_IT_IS(images=image, return_tensors="pt")).last_hidden_state
    return states[0]


class TestPatchStates:
    @pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
    @pytest.mark.parametrize("image_size", [(96, 160), (104, 88), (24, 40)])
    def test_of_a_model_that_sees_patches_alone(self, image_size, overlap):
        model, image = Patchwise(PatchwiseConfig()), picture(*image_size)
        found = feature_map_tiled(model, image, tile=32, overlap=overlap, image_processor=AS_IT_IS)
        torch.testing.assert_close(found, whole(model, image), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("selector", [None, "variance"])
    def test_of_an_adaptive_vit_whose_blocks_do_nothing(self, selector):
        # What is not selected has its embedding, which is what the others have if blocks do nothing.
        model = ours(position_encoding="none", patch_selector=selector)
        for layer in model.vit.layers:
            for linear in (layer.attention.o_proj, layer.mlp.fc2):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        image = picture(96, 64)
        result = predict_tiled(model, image, tile=32, image_processor=AS_IT_IS, feature_maps=True)
        with torch.no_grad():
            states = model.vit(**AS_IT_IS(images=image, return_tensors="pt"), restore=True)
        expected = states.restored_hidden_state[0].T.reshape(32, 12, 8)
        torch.testing.assert_close(result.feature_map, expected, rtol=1e-4, atol=1e-4)

    def test_of_a_vit_without_blocks(self):
        model, image = per_patch_vit(), picture(64, 96)
        found = feature_map_tiled(model, image, tile=32, image_processor=PROCESSOR)
        with torch.no_grad():
            pixels = PROCESSOR(images=image, do_resize=False, return_tensors="pt")["pixel_values"]
            states = model.vit(pixels, interpolate_pos_encoding=True).last_hidden_state[0, 1:]
        torch.testing.assert_close(found, states.T.reshape(16, 8, 12), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("make", [vit, swin, resnet, convnext], ids=lambda make: make.__name__)
    def test_of_any_classifier(self, make):
        model, image = make(), picture(32, 32)
        found = predict_tiled(model, image, tile=32, image_processor=PROCESSOR, feature_maps=True)
        with torch.no_grad():
            states = model.base_model(**PROCESSOR(images=image, return_tensors="pt")).last_hidden_state[0]
        if states.ndim == 2:
            side = int(len(states) ** 0.5)
            states = states[-side * side :].T.reshape(-1, side, side)
        torch.testing.assert_close(found.feature_map, states, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("selection", ["variance", "attention", "merge", "attentive", "context"])
    def test_of_an_adaptive_vit_that_selects(self, selection):
        config = tiny_config(**SELECTIONS[selection])
        model, image = AdaptiveViTForImageClassification(config).eval(), picture(70, 90)
        arguments = {"tile": 32, "overlap": 0.25, "image_processor": AS_IT_IS}
        found = predict_tiled(model, image, **arguments, feature_maps=True).feature_map
        assert found.shape == (32, 9, 11) and found.isfinite().all()
        assert found.flatten(1).std(dim=1).min() > 0
        # Without a head, and as a backbone, they are the same.
        base = AdaptiveViTModel(config).eval()
        base.load_state_dict(model.vit.state_dict(), strict=False)
        torch.testing.assert_close(feature_map_tiled(base, image, **arguments), found)
        backbone = AdaptiveViTBackbone(config).eval()
        backbone.load_state_dict(model.vit.state_dict(), strict=False)
        torch.testing.assert_close(feature_map_tiled(backbone, image, **arguments), found)

    def test_of_a_backbone(self):
        config = BitConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=4)
        backbone, image = BitBackbone(config).eval(), picture(32, 32)
        found = feature_map_tiled(backbone, image, tile=32, image_processor=PROCESSOR)
        with torch.no_grad():
            maps = backbone(**PROCESSOR(images=image, return_tensors="pt")).feature_maps
        torch.testing.assert_close(found, maps[-1][0])
        with pytest.raises(TypeError, match=r"BitBackbone gives no logits.*feature_map_tiled"):
            predict_tiled(backbone, image, image_processor=PROCESSOR)

    def test_of_a_model_without_any(self):
        class Vectors(Patchwise):
            def forward(self, pixel_values):
                return BaseModelOutput(last_hidden_state=pixel_values.flatten(1))

        with pytest.raises(TypeError, match="Vectors has no states of patches in a grid"):
            feature_map_tiled(Vectors(PatchwiseConfig()), picture(32, 32), image_processor=PROCESSOR)
