"""Swin: windows, what is computed on, and what is refused."""

import copy

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoBackbone, AutoConfig, UperNetConfig, UperNetForSemanticSegmentation

from tests.helpers.models import SWINS, TINY_SWIN, V2, every_swin, tiny_swin_config
from vit_hf import (
    AdaptiveSwinBackbone,
    AdaptiveSwinForImageClassification,
    AdaptiveSwinForMaskedImageModeling,
    AdaptiveSwinModel,
    PatchSelector,
    register_patch_selector,
)
from vit_hf.model.configuration_adaptive_swin import num_windows_selected
from vit_hf.model.swin_layers import arrange, fit_window, lay_out, pool_cells, pool_windows, split


GRIDS = [(8, 8), (10, 7), (3, 9), (4, 4)]
every_grid = pytest.mark.parametrize("grid", GRIDS)
every_shift = pytest.mark.parametrize(("shift", "first"), [((0, 0), True), ((2, 1), True), ((2, 1), False)])


class TestWindows:
    @every_grid
    @every_shift
    def test_cells_are_those_that_rolling_and_cutting_gives(self, grid, shift, first):
        layout = lay_out(grid, (4, 3), shift, first, torch.device("cpu"))
        states = torch.randn(2, grid[0] * grid[1], 5)
        maps = arrange(states.transpose(1, 2).unflatten(2, grid), (4, 3), shift, first, 0.0)
        expected = split(maps, (4, 3)).permute(0, 2, 3, 1).flatten(1, 2)
        assert torch.equal(layout.take(states, None), expected)
        assert layout.num_windows == -(-grid[0] // 4) * -(-grid[1] // 3)

    @every_grid
    @every_shift
    def test_what_is_taken_can_be_put_back(self, grid, shift, first):
        layout = lay_out(grid, (4, 3), shift, first, torch.device("cpu"))
        states, other = torch.randn(2, grid[0] * grid[1], 5), torch.randn(2, grid[0] * grid[1], 5)
        every = torch.arange(layout.num_windows).expand(2, -1)
        for indices in (None, every):
            assert torch.equal(layout.put(other, layout.take(states, indices), indices), states)
        some = every[:, ::2]
        got = layout.put(other, layout.take(states, some), some)
        inside = torch.zeros(len(got[0]) + 1, dtype=torch.bool)
        inside[layout.cells_of(some)[0]] = True
        inside = inside[:-1]
        assert torch.equal(got[:, inside], states[:, inside])
        assert torch.equal(got[:, ~inside], other[:, ~inside])

    def test_pieces_of_the_image_do_not_attend_to_each_other(self):
        """Cells of a window attend to each other if they are neighbors in the image as they are in the
        window."""
        layout = lay_out((8, 8), (4, 4), (2, 2), True, torch.device("cpu"))
        mask = layout.mask(1, None, torch.float32)[:, 0]
        rows, columns = layout.cells // 8, layout.cells % 8
        apart = torch.zeros_like(mask, dtype=torch.bool)
        for places in (rows, columns):
            apart |= (places[:, :, None] - places[:, None]).abs() >= 4
        assert torch.equal(mask < 0, apart) and (mask[0] == 0).all() and (mask[3] < 0).any()
        some = torch.tensor([[1, 3]])
        assert torch.equal(layout.mask(1, some, torch.float32)[:, 0], mask[[1, 3]])

    @pytest.mark.parametrize(
        ("grid", "fixed", "expected"),
        [
            ((14, 14), False, ((7, 7), (3, 3))),
            ((7, 14), False, ((7, 7), (0, 0))),
            ((7, 14), True, ((7, 7), (3, 3))),
            ((3, 5), False, ((3, 3), (0, 0))),
        ],
    )
    def test_windows_fit_small_grids(self, grid, fixed, expected):
        assert fit_window(grid, (7, 7), (3, 3), fixed) == expected

    @pytest.mark.parametrize("kind", ["max", "mean"])
    def test_scores_are_those_of_the_patches(self, kind):
        scores = torch.randn(2, 5, 7)
        layout = lay_out((5, 7), (2, 4), (1, 2), True, torch.device("cpu"))
        got = pool_windows(scores, layout, kind)
        for window, cells in enumerate(layout.cells):
            patches = scores.flatten(1)[:, cells[cells >= 0]]
            expected = patches.amax(1) if kind == "max" else patches.mean(1)
            torch.testing.assert_close(got[:, window], expected)
        cells = pool_cells(scores, kind)
        corner = scores[:, :2, :2].flatten(1)
        torch.testing.assert_close(cells[:, 0, 0], corner.amax(1) if kind == "max" else corner.mean(1))
        assert cells.shape == (2, 3, 4) and torch.equal(cells[:, 2, 3], scores[:, 4, 6])

    def test_how_many(self):
        assert [num_windows_selected(9, stage, 100) for stage in range(4)] == [9, 3, 1, 1]
        assert [num_windows_selected(0.25, 0, number) for number in (100, 10, 1)] == [25, 2, 1]
        assert num_windows_selected(99, 0, 20) == 20
        assert [num_windows_selected(4, 0, 20, dense_fraction) for dense_fraction in (0.0, 0.5, 1.0)] == [
            4,
            12,
            20,
        ]


def classifier(**fields) -> AdaptiveSwinForImageClassification:
    torch.manual_seed(1)
    return AdaptiveSwinForImageClassification(tiny_swin_config(**fields)).eval()


def spotted(*places: tuple[int, int]) -> torch.Tensor:
    """Grey images of 64x64 pixels with noise in one patch of each."""
    images = torch.zeros(len(places), 3, 64, 64)
    for image, (row, column) in zip(images, places, strict=True):
        image[:, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] = torch.randn(3, 4, 4)
    return images


class TestSelection:
    @every_swin
    @pytest.mark.parametrize("size", [(64, 64), (50, 72)])
    def test_all_windows_selected_is_dense(self, swin, size, monkeypatch):
        swin = {name: value for name, value in swin.items() if name != "num_selected_windows"}
        selector = {"patch_selector": swin.pop("patch_selector", "variance")}
        dense, images = classifier(**swin), torch.randn(2, 3, *size)
        every = classifier(**swin, **selector, num_selected_windows=1.0)
        assert torch.equal(every(images).logits, dense(images).logits)
        # And window by window, on the way that fewer go.
        chosen = lambda self, stage, layout, grid: torch.arange(layout.num_windows).expand(2, -1)  # noqa: E731
        monkeypatch.setattr("vit_hf.model.swin_layers.WindowChooser.__call__", chosen)
        torch.testing.assert_close(every(images).logits, dense(images).logits, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("version", [{}, V2], ids=["v1", "v2"])
    @pytest.mark.parametrize("size", [(64, 64), (50, 72)])
    def test_other_windows_pass_unchanged(self, version, size):
        fields = {"depths": [1], "num_heads": [2], "encoder_stride": 4, **version}
        selected = {"patch_selector": "variance", "num_selected_windows": 3}
        dense, few = classifier(**fields), classifier(**fields, **selected)
        images = torch.randn(2, 3, *size)
        whole = dense(images, output_hidden_states=True)
        part = few(images, output_hidden_states=True)
        assert part.selected_windows[0].shape == (2, 3) and part.selected_patches.shape == (2, 48)
        for index in range(2):
            inside = torch.zeros(whole.hidden_states[0].shape[1], dtype=torch.bool)
            patches = part.selected_patches[index]
            inside[patches[patches >= 0]] = True
            before, after = (states[index] for states in part.hidden_states)
            assert torch.equal(after[~inside], before[~inside])
            torch.testing.assert_close(
                after[inside], whole.hidden_states[1][index][inside], atol=1e-5, rtol=1e-5
            )
            assert not torch.isclose(after[inside], before[inside]).all(dim=-1).any()

    def test_the_object_is_in_a_window_of_every_block(self):
        places = [(0, 0), (9, 6), (15, 15)]
        model = classifier(patch_selector="variance", num_selected_windows=1, window_fit="fixed")
        outputs = model(spotted(*places))
        assert outputs.spatial_shapes.tolist() == [[16, 16]] * 3
        assert outputs.patch_scores.argmax(1).tolist() == [row * 16 + column for row, column in places]
        for kind, step in ((outputs.selected_windows, 0), (outputs.selected_shifted_windows, 2)):
            for stage, windows in enumerate(kind):
                side = 16 // 2**stage
                layout = lay_out((side, side), (4, 4), (step, step), True, torch.device("cpu"))
                for (row, column), window in zip(places, windows, strict=True):
                    cell = (row // 2**stage) * side + column // 2**stage
                    assert cell in layout.cells[window]

    def test_counts_are_the_same_for_all_images(self):
        model = classifier(patch_selector="saliency", num_selected_windows=6)
        for size, batch in (((64, 64), 1), ((64, 64), 3), ((96, 50), 2)):
            windows = model(torch.randn(batch, 3, *size)).selected_windows
            assert [chosen.shape for chosen in windows] == [(batch, 6), (batch, 2), (batch, 1)]

    @pytest.mark.parametrize("selector", ["variance", "gradient", "entropy", "saliency", "random", "uniform"])
    def test_images_do_not_depend_on_their_batch(self, selector):
        model = classifier(patch_selector=selector, num_selected_windows=0.3)
        images = torch.randn(3, 3, 64, 48)
        together = model(images)
        for index in range(3):
            alone = model(images[index : index + 1])
            torch.testing.assert_close(alone.logits[0], together.logits[index], atol=1e-5, rtol=1e-5)
            assert torch.equal(alone.selected_patches[0], together.selected_patches[index])

    def test_evenly_spread_windows_are_spread(self):
        windows = classifier(patch_selector="uniform", num_selected_windows=4)(torch.randn(1, 3, 64, 64))
        rows, columns = windows.selected_windows[0][0] // 4, windows.selected_windows[0][0] % 4
        assert (
            len({(int(row) // 2, int(column) // 2) for row, column in zip(rows, columns, strict=True)}) == 4
        )

    def test_relaxed_and_explored_while_training(self):
        model = classifier(patch_selector={"type": "variance", "exploration": 0.5}, num_selected_windows=2)
        images = torch.randn(1, 3, 64, 64)
        usual = model(images).selected_windows[0]
        model.train()
        drawn = {tuple(model(images).selected_windows[0][0].tolist()) for _ in range(12)}
        assert len(drawn) > 2 and len(next(iter(drawn))) == 2
        assert torch.equal(model(images, sample_selection=False).selected_windows[0], usual)
        model.set_dense_fraction(1.0)
        assert model(images).selected_windows[0].shape == (1, 16)
        assert model.eval()(images).selected_windows[0].shape == (1, 2)

    def test_gradients_reach_what_was_computed_on(self):
        model = classifier(patch_selector="variance", num_selected_windows=2).train()
        model(torch.randn(2, 3, 64, 64), labels=torch.tensor([1, 2])).loss.backward()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())

    def test_a_class_of_ones_own(self):
        @register_patch_selector("brightest_of_swin")
        class Brightest(PatchSelector):
            def score(self, patches, num_selected, probe):
                return patches.pixels.mean(dim=(-3, -2, -1)).flatten(1)

        model = classifier(patch_selector="brightest_of_swin", num_selected_windows=1)
        images = torch.zeros(1, 3, 64, 64)
        images[..., 40:44, 20:24] = 5
        assert model(images).selected_windows[0].tolist() == [[2 * 4 + 1]]

        @register_patch_selector("asks_for_attention")
        class Asking(PatchSelector):
            def score(self, patches, num_selected, probe):
                return probe.attention(patches, 1, "mean")

        with pytest.raises(ValueError, match="without a CLS token"):
            classifier(patch_selector="asks_for_attention", num_selected_windows=1)(images)


class TestRefuses:
    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"depths": [2, 0, 2]}, r"depths=\[2, 0, 2\]"),
            ({"num_heads": [2, 2]}, r"one for each stage"),
            ({"num_heads": [2, 3, 4]}, r"stage 2 has embed_dim \* 2 = 32 channels"),
            ({"window_size": 0}, r"window_size=0 must be at least 1"),
            ({"window_size": [4, 4]}, r"for each of the 3 stages"),
            ({"shift_size": [1, 1, 4]}, r"stage 3 by \(4, 4\) cells, which must be less"),
            ({"pretrained_window_sizes": [4]}, r"pretrained_window_sizes=\[4\]"),
            (
                {"position_encoding": "rotary"},
                r"choose one of \['relative_bias', 'relative_bias_continuous'\]",
            ),
            ({"window_fit": "none"}, r"window_fit"),
            ({"mlp_ratio": 0.0}, r"mlp_ratio=0.0"),
            ({"hidden_act": "none"}, r"hidden_act='none' is unknown"),
            ({"drop_path_rate": 1.0}, r"drop_path_rate=1.0 must lie in \[0, 1\)"),
            (
                {"token_reducer": "merge"},
                r"token_reducer='merge' is not for Swin: windows need a full grid",
            ),
            ({"num_selected_patches": 9}, r"use num_selected_windows"),
            ({"thumbnail_context": True}, r"a window's attention sees nothing beyond it"),
            ({"patch_selector": "attention", "num_selected_windows": 2}, r"CLS token of a ViT"),
            ({"patch_selector": "policy", "num_selected_windows": 2}, r"rewarded for one draw"),
            ({"patch_selector": "perturbed", "num_selected_windows": 2}, r"means of patches"),
            ({"patch_selector": "cross_attention", "num_selected_windows": 2}, r"one attention over all"),
            (
                {"patch_selector": "nothing", "num_selected_windows": 2},
                r"patch_selector='nothing' is unknown",
            ),
            ({"patch_selector": "variance"}, r"needs num_selected_windows"),
            ({"num_selected_windows": 3}, r"needs a patch_selector: choose one of .*'entropy'"),
            (
                {"patch_selector": "variance", "num_selected_windows": 1.5},
                r"num_selected_windows=1.5.*in \(0, 1\]",
            ),
            (
                {"patch_selector": "variance", "num_selected_windows": 0},
                r"num_selected_windows=0.*of at least 1",
            ),
            ({"patch_selector": "gradient", "num_selected_windows": 1, "patch_size": 2}, r"3x3 pixels"),
            ({"out_features": ["stage4"]}, r"out_features must be"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_fields_that_do_not_fit(self, fields, reason):
        with pytest.raises((ValueError, StrictDataclassError), match=reason):
            tiny_swin_config(**fields)

    @pytest.mark.parametrize(
        ("inputs", "reason"),
        [
            ({"pixel_values": torch.randn(3, 32, 32)}, r"got \(3, 32, 32\)"),
            ({"pixel_values": torch.randn(1, 4, 32, 32)}, r"4 channels"),
            ({"pixel_values": torch.full((1, 3, 32, 32), torch.nan)}, r"NaN"),
            (
                {"pixel_values": torch.randn(1, 3, 32, 32), "bool_masked_pos": torch.ones(1, 64).bool()},
                "mask token",
            ),
        ],
        ids=["shape", "channels", "finite", "mask"],
    )
    def test_inputs(self, inputs, reason):
        with pytest.raises(ValueError, match=reason):
            AdaptiveSwinModel(tiny_swin_config())(**inputs)

    def test_misspelt_arguments(self):
        with pytest.raises(TypeError, match="restore"):
            AdaptiveSwinModel(tiny_swin_config())(torch.randn(1, 3, 32, 32), restore=True)

    def test_another_size_on_demand(self):
        model, images = classifier(use_absolute_embeddings=True), torch.randn(1, 3, 40, 32)
        with pytest.raises(ValueError, match="interpolate_pos_encoding=False forbids"):
            model(images, interpolate_pos_encoding=False)

    def test_selection_under_masked_image_modeling(self):
        with pytest.raises(ValueError, match="reconstructs every patch"):
            AdaptiveSwinForMaskedImageModeling(tiny_swin_config(**SWINS["swin_selected"]))

    def test_labels_that_do_not_exist(self):
        with pytest.raises(ValueError, match=r"Label 9 is outside 0\.\.4"):
            classifier()(torch.randn(1, 3, 32, 32), labels=torch.tensor([9]))


class TestHeads:
    def test_masked_images_of_any_size(self):
        model = AdaptiveSwinForMaskedImageModeling(tiny_swin_config())
        images, masked = torch.randn(2, 3, 42, 54), torch.rand(2, 11 * 14) < 0.5
        outputs = model(images, bool_masked_pos=masked)
        assert outputs.reconstruction.shape == images.shape and outputs.loss > 0
        outputs.loss.backward()
        assert model.swin.embeddings.mask_token.grad.abs().sum() > 0
        error = (images - outputs.reconstruction).abs().mean(dim=1)
        inside = masked.unflatten(1, (11, 14)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :42, :54]
        torch.testing.assert_close(outputs.loss, error[inside].mean())
        model.config.encoder_stride = 8
        with pytest.raises(ValueError, match="encoder_stride=8 must be 16"):
            model(images, bool_masked_pos=masked)

    @every_swin
    def test_segments_under_upernet(self, swin, tmp_path):
        config = tiny_swin_config(**swin, out_features=["stem", "stage1", "stage2", "stage3"])
        model = AutoBackbone.from_config(config).eval()
        assert type(model) is AdaptiveSwinBackbone and model.channels == [16, 16, 32, 64]
        maps = model(torch.randn(1, 3, 50, 64)).feature_maps
        assert [values.shape[1:] for values in maps] == [(16, 13, 16), (16, 13, 16), (32, 7, 8), (64, 4, 4)]
        head = UperNetConfig(
            backbone_config=config, num_labels=3, hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False
        )
        model = UperNetForSemanticSegmentation(head).eval()
        model.save_pretrained(tmp_path)
        images = torch.randn(1, 3, 64, 64)
        again = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(again(images).logits, model(images).logits)

    def test_the_configuration_says_how_the_parts_are_called_elsewhere(self):
        config = AutoConfig.for_model("adaptive_swin", **TINY_SWIN)
        assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (
            64,
            3,
            [2, 2, 4],
        )
        assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_padding_in_float16():
    """Keys of padding are 0 in SwinV2, and have no direction."""
    model = AdaptiveSwinForImageClassification(tiny_swin_config(**V2))
    images, labels = torch.randn(2, 3, 42, 54), torch.tensor([0, 1])
    assert torch.isfinite(copy.deepcopy(model).half()(images.half()).logits).all()
    with torch.autocast("cpu", torch.float16):
        loss = model(images, labels=labels).loss
    (1024 * loss).backward()  # as a scaler of gradients does
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


def test_the_decoder_may_lie_on_another_device():
    model = AdaptiveSwinForMaskedImageModeling(tiny_swin_config())
    model.decoder.to("meta")
    add_hook_to_module(model.decoder, AlignDevicesHook(execution_device="meta"))
    masked = torch.rand(2, 256) < 0.5
    assert model(torch.randn(2, 3, 64, 64), bool_masked_pos=masked).loss.device.type == "meta"


def test_stages_may_lie_on_several_devices():
    """As with device_map="auto"; the second device is one that computes shapes only."""
    config = tiny_swin_config(patch_selector="variance", num_selected_windows=0.5)
    model = AdaptiveSwinForImageClassification(config).eval()
    for part in (*model.swin.encoder.layers[1:], model.swin.layernorm, model.classifier):
        part.to("meta")
        add_hook_to_module(part, AlignDevicesHook(execution_device="meta"))
    assert model(torch.randn(2, 3, 64, 64)).logits.device.type == "meta"


def test_images_of_whole_patches_are_not_copied():
    model, images = AdaptiveSwinModel(tiny_swin_config()), torch.randn(1, 3, 64, 64)
    assert model.to_patches(images, None).image.data_ptr() == images.data_ptr()


def test_works_without_the_package(tmp_path):
    from tests.helpers.remote_code import run_elsewhere

    model = classifier(**V2, patch_selector="variance", num_selected_windows=2)
    model.save_pretrained(tmp_path / "saved")
    images = torch.randn(2, 3, 40, 32)
    torch.save({"images": images, "logits": model(images).logits.detach()}, tmp_path / "expected.pt")
    run_elsewhere(
        f"""
        import torch
        from transformers import AutoModel, AutoModelForImageClassification
        from transformers.dynamic_module_utils import get_class_from_dynamic_module
        path = {str(tmp_path / "saved")!r}
        expected = torch.load({str(tmp_path / "expected.pt")!r})
        model = AutoModelForImageClassification.from_pretrained(path, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        torch.testing.assert_close(model(expected["images"]).logits, expected["logits"], atol=0, rtol=0)
        base = AutoModel.from_pretrained(path, trust_remote_code=True)
        assert base(expected["images"]).selected_windows[0].shape == (2, 2)
        backbone_class = get_class_from_dynamic_module("modeling_adaptive_swin.AdaptiveSwinBackbone", path)
        backbone = backbone_class.from_pretrained(path)
        assert backbone(expected["images"]).feature_maps[0].shape == (2, 64, 3, 2)
        """,
        tmp_path,
    )
