"""`vit_hf.explain` on what happens inside the encoder, and on what a policy would draw."""

import numpy as np
import PIL.Image
import pytest
import torch

from tests.helpers.models import SELECTIONS, every_selection, tiny_config
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.explanations.explain import explain
from vit_hf.explanations.stages import follow, place_groups, record_reductions, to_stages
from vit_hf.overlays import color_groups, merged


NATIVE = {"do_resize": False}
REDUCTIONS = {name: fields for name, fields in SELECTIONS.items() if "token_reducer" in fields}


def noise_image(height: int = 40, width: int = 56) -> PIL.Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return PIL.Image.fromarray(values.astype(np.uint8))


def tiny_model(**fields) -> AdaptiveViTForImageClassification:
    return AdaptiveViTForImageClassification(tiny_config(**fields)).eval()


class TestGroups:
    def test_are_followed_through_all_reductions(self):
        # 5 tokens to 3 (the second and third merge, the fourth goes), one of them to nothing, the rest
        # swapped.
        first, second = np.array([0, 1, 1, -1, 2]), np.array([1, -1, 0])
        after_first, after_second = follow([first, second], 5)
        assert after_first.tolist() == [0, 1, 1, -1, 2]
        assert after_second.tolist() == [1, -1, -1, -1, 0]

    def test_ignore_tokens_that_stand_for_no_patch(self):
        # Four to two and a fused one, which stays where a patch's token goes.
        after_first, after_second = follow([np.array([0, -1, -1, 1]), np.array([-1, 0, 1])], 4)
        assert after_first.tolist() == [0, -1, -1, 1]
        assert after_second.tolist() == [-1, -1, -1, 0]

    def test_of_no_reduction(self):
        assert follow([], 4) == []

    def test_lie_where_the_patches_do(self):
        groups = place_groups(np.array([7, -1, 3]), np.array([0, 2, 5]), (2, 3))
        assert groups.tolist() == [[7, -1, -1], [-1, -1, 3]]


class TestStages:
    @every_selection
    def test_are_those_of_the_outputs(self, selection):
        """Groups by hooks on the reducers equal those by what the model puts out."""
        model, image_processor = tiny_model(**selection), AdaptiveViTImageProcessor(**NATIVE)
        image = noise_image()
        [explanation] = explain(model, image_processor, image)
        with torch.no_grad():
            outputs = model(**image_processor(images=image, return_tensors="pt"))
        layers = sorted(selection.get("reduction_layers", []))
        assert [stage.block for stage in explanation.stages] == [layer + 1 for layer in layers]
        assert ("stages" in explanation.pictures) == bool(layers)
        places = outputs.token_assignments[0] if layers else []
        assert (outputs.token_assignments is None) == (not layers)
        for stage, place in zip(explanation.stages, places, strict=True):
            groups = np.full((5, 7), -1)
            groups[explanation.kept] = place
            np.testing.assert_array_equal(stage.groups, groups)
        if layers:
            sizes = outputs.token_sizes
            present = outputs.token_coordinates.shape[1] if sizes is None else int((sizes > 0).sum())
            assert explanation.stages[-1].num_tokens == present

    @pytest.mark.parametrize("number", [9, 0.5])
    def test_of_images_cut_by_the_loader(self, number):
        """Which have masks, and reducers that count by image."""
        fields = {"patch_selector": "variance", "num_selected_patches": number, **REDUCTIONS["sample"]}
        cut = AdaptiveViTImageProcessor(**NATIVE, return_patches=True, patch_size=8)
        torch.manual_seed(0)
        [explanation] = explain(tiny_model(**fields), cut, noise_image())
        torch.manual_seed(0)
        [whole] = explain(tiny_model(**fields), AdaptiveViTImageProcessor(**NATIVE), noise_image())
        for stage, expected in zip(explanation.stages, whole.stages, strict=True):
            np.testing.assert_array_equal(stage.groups, expected.groups)
            assert stage.num_tokens == expected.num_tokens == stage.num_groups

    def test_count_tokens(self):
        numbers = {}
        for name in ("attentive", "merge", "gumbel"):
            fields = {"token_reducer": name, "keep_rate": 0.5, "reduction_layers": [0, 1]}
            [explanation] = explain(
                tiny_model(**fields), AdaptiveViTImageProcessor(**NATIVE), noise_image(32, 32)
            )
            numbers[name] = [(stage.num_tokens, stage.num_groups) for stage in explanation.stages]
        # Out of 16; the attentive reducer keeps half of 9 at the second stage, and may keep the first fused
        # token.
        assert numbers["merge"] == numbers["gumbel"] == [(8, 8), (4, 4)]
        assert numbers["attentive"][0] == (9, 8)
        assert numbers["attentive"][1] in ((6, 5), (6, 4))

    def test_reducers_that_keep_all_leave_no_stage(self):
        model = tiny_model(token_reducer="attentive", keep_rate=1.0, reduction_layers=[0])
        [explanation] = explain(model, AdaptiveViTImageProcessor(**NATIVE), noise_image())
        assert explanation.stages == []
        assert "stages" not in explanation.pictures
        with pytest.raises(ValueError, match="stages a token reducer"):
            explanation.figure("stages")

    def test_leave_no_hooks(self):
        model = tiny_model(**REDUCTIONS["merge"])
        with record_reductions(model.vit) as records:
            model(torch.rand(1, 3, 32, 32))
        assert sorted(records) == [0, 1]
        assert not any(reducer._forward_hooks for reducer in model.vit.reducers.values())
        assert len(to_stages(records, np.arange(16), (4, 4))) == 2


class TestAttention:
    """Maps of attention are of patches, so they end where a token stands for something else."""

    @pytest.mark.parametrize(
        ("fields", "block"),
        [
            ({"token_reducer": "attentive", "keep_rate": 0.6, "reduction_layers": [1]}, 2),
            # One goes and a fused one comes, so the number of tokens stays the same.
            ({"token_reducer": "attentive", "keep_rate": 0.95, "reduction_layers": [1]}, 2),
            ({"token_reducer": "gumbel", "keep_rate": 0.6, "reduction_layers": [1]}, 1),
            ({"token_reducer": "gumbel", "keep_rate": 0.6, "reduction_layers": [0]}, None),
            ({"token_reducer": "gumbel", "keep_rate": 1.0, "reduction_layers": [0]}, 3),
        ],
    )
    def test_ends_at_the_first_reduction(self, fields, block):
        [explanation] = explain(
            tiny_model(**fields), AdaptiveViTImageProcessor(**NATIVE), noise_image(32, 32)
        )
        assert explanation.attention_block == block
        assert (explanation.attention is None) == (block is None)
        assert ("rollout" in explanation.pictures) == (block is not None)


class TestPolicy:
    def test_probabilities_of_the_first_draw(self):
        model = tiny_model(patch_selector="policy")
        [explanation] = explain(model, AdaptiveViTImageProcessor(**NATIVE), noise_image())
        scores = torch.from_numpy(explanation.patch_scores)
        expected = scores.flatten().softmax(dim=0).reshape(5, 7)
        np.testing.assert_allclose(explanation.selection_probabilities, expected, rtol=1e-5)
        titles = [axes.get_title(loc="left") for axes in explanation.figure("scores").axes]
        assert "Probability to be drawn first" in titles

    def test_others_have_none(self):
        model = tiny_model(patch_selector="perturbed")
        [explanation] = explain(model, AdaptiveViTImageProcessor(**NATIVE), noise_image())
        assert explanation.selection_probabilities is None
        assert explanation.figure("scores").axes[0].get_title(loc="left") == "Scores: perturbed"


class TestColors:
    def test_of_groups(self):
        """Of 2 x 3 patches of 2 pixels a side: two are merged, one is alone, the rest is dropped."""
        picture = np.zeros((4, 6, 3), dtype=np.uint8)
        picture[:2, :2] = [100, 0, 0]
        picture[2:, 4:] = [0, 200, 40]
        picture[0, 2] = [9, 8, 7]
        groups = np.array([[4, 1, -1], [-1, -1, 4]])
        assert merged(groups).tolist() == [[True, False, False], [False, False, True]]
        shown = color_groups(picture, groups, (2.0, 3.0))
        mean = [50, 100, 20]
        assert (shown[:2, :2] == mean).all() and (shown[2:, 4:] == mean).all()
        np.testing.assert_array_equal(shown[:2, 2:4], picture[:2, 2:4])
        pale = shown[2:, :4]
        assert (pale == pale[..., :1]).all() and (pale > 100).all()

    def test_beyond_whole_patches_is_nobodys(self):
        picture = np.full((5, 5, 3), 200, dtype=np.uint8)
        shown = color_groups(picture, np.zeros((2, 2), dtype=np.int64), (2.5, 2.5))
        assert (shown[:4, :4] == 200).all()
        assert (shown[4] == shown[4, 0, 0]).all() and (shown[4] != 200).all()

    def test_nothing_kept(self):
        picture = np.full((4, 4, 3), 200, dtype=np.uint8)
        assert (color_groups(picture, np.full((2, 2), -1), (2.0, 2.0)) < 200).all()


class TestPicture:
    @pytest.mark.parametrize("size", [(300, 16), (16, 300), (64, 30)])
    @pytest.mark.parametrize("name", ["both_attentive", "both_merge", "merge_r"])
    def test_any_shape_fits_its_sheet(self, size, name):
        fields = {**REDUCTIONS[name]}
        if "patch_selector" in fields:
            fields["num_selected_patches"] = 12
        [explanation] = explain(
            tiny_model(**fields),
            AdaptiveViTImageProcessor(**NATIVE),
            noise_image(*size),
            names=["a_very_long_name" * 5],
            boxes=[[[0, 0, 9, 9]]],
        )
        for picture in ("stages", "patches", "overview"):
            figure = explanation.figure(picture)
            boxes = [text.get_window_extent() for text in figure.texts]
            boxes += [axes.get_tightbbox() for axes in figure.axes]
            for box in boxes:
                assert box.x0 >= 0 and box.y0 >= 0
                assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1

    def test_titles_count(self):
        fields = {"token_reducer": "attentive", "keep_rate": 0.5, "reduction_layers": [1]}
        model = tiny_model(**fields, patch_selector="variance", num_selected_patches=8)
        [explanation] = explain(model, AdaptiveViTImageProcessor(**NATIVE), noise_image(32, 32))
        figure = explanation.figure("stages")
        titles = [axes.get_title(loc="left") for axes in figure.axes]
        assert titles == ["before the encoder: 8 of 16", "after block 2: 4 + 1 of 8"]
        # Color marks the patches that are left.
        shown = figure.axes[1].images[0].get_array()
        side = shown.shape[0] // 4
        colored = (shown.max(axis=-1) != shown.min(axis=-1)).reshape(4, side, 4, side).any(axis=(1, 3))
        np.testing.assert_array_equal(colored, explanation.stages[0].groups >= 0)

    def test_many_stages_take_several_rows(self):
        fields = {"token_reducer": {"type": "merge", "r": 1}, "reduction_layers": list(range(5))}
        model = tiny_model(**fields, num_hidden_layers=5)
        [explanation] = explain(model, AdaptiveViTImageProcessor(**NATIVE), noise_image(32, 32))
        figure = explanation.figure("stages")
        tops = {round(axes.get_position().y1, 4) for axes in figure.axes}
        assert len(figure.axes) == 6
        assert len(tops) == 2
        texts = " ".join(text.get_text() for text in figure.texts)
        assert "Merged" in texts and "fused" not in texts
