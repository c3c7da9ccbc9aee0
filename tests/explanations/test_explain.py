"""`vit_hf.explain` against plain computations, and its pictures."""

import sys

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import ViTForImageClassification, ViTImageProcessor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.helpers.models import TINY, tiny_config
from vit_hf import (
    POSITION_ENCODINGS,
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
    AdaptiveViTModel,
)
from vit_hf.arguments import PICTURES
from vit_hf.data.images import unique_names
from vit_hf.explanations import attention_maps
from vit_hf.explanations.explain import IMAGE_PICTURES, explain
from vit_hf.explanations.position_maps import position_similarity
from vit_hf.model.patches import PatchTokens, grid_coordinates


NATIVE = {"do_resize": False}
RESIZED = {"size": {"height": 32, "width": 32}}


def tiny_model(**fields) -> AdaptiveViTForImageClassification:
    return AdaptiveViTForImageClassification(tiny_config(**fields)).eval()


def noise_image(height: int = 32, width: int = 32) -> PIL.Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return PIL.Image.fromarray(values.astype(np.uint8))


def one_textured_patch(
    height: int, width: int, row: int, column: int, side: int
) -> tuple[np.ndarray, list[int]]:
    """Gray but for a checkered square; and [x0, y0, x1, y1] of the square."""
    image = np.full((height, width, 3), 128, dtype=np.uint8)
    x, y = column * side, row * side
    checkers = (np.indices((side, side)) // 4).sum(axis=0) % 2 * 255
    image[y : y + side, x : x + side] = checkers[..., None]
    return image, [x, y, x + side, y + side]


def reference_maps(model, pixel_values) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of the last block and rollout over the patches, by products of whole matrices."""
    with torch.no_grad():
        outputs = model(pixel_values, output_attentions=True)
    attentions = [attention[0].mean(dim=0) for attention in outputs.attentions]
    num_tokens, num_patches = attentions[0].shape[0], outputs.selected_patches.shape[1]
    rollout = torch.eye(num_tokens)
    for attention in attentions:
        mixed = attention + torch.eye(num_tokens)
        rollout = mixed / mixed.sum(dim=-1, keepdim=True) @ rollout
    rows = slice(-num_patches, None) if model.config.pooling == "mean" else slice(0, 1)
    return tuple(matrix[rows, -num_patches:].mean(dim=0) for matrix in (attentions[-1], rollout))


class TestAttention:
    @pytest.mark.parametrize("encoding", POSITION_ENCODINGS)
    @pytest.mark.parametrize("pooling", ["cls", "mean"])
    def test_equals_products_of_whole_matrices(self, encoding, pooling):
        model = tiny_model(
            position_encoding=encoding, pooling=pooling, num_register_tokens=2, patch_selector="attention"
        )
        image_processor = AdaptiveViTImageProcessor(**NATIVE)
        image = noise_image(40, 56)
        [explanation] = explain(model, image_processor, image)
        attention, rollout = reference_maps(
            model, image_processor(images=image, return_tensors="pt")["pixel_values"]
        )
        kept = explanation.kept_patches
        np.testing.assert_allclose(explanation.attention.flatten()[kept], attention, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(explanation.rollout.flatten()[kept], rollout, rtol=1e-4, atol=1e-6)
        # What was not seen is not zero.
        assert np.isnan(explanation.attention).sum() == 5 * 7 - len(kept)
        assert np.array_equal(np.isnan(explanation.attention), ~explanation.kept)

    def test_is_the_same_in_small_chunks(self, monkeypatch):
        model, image_processor = tiny_model(pooling="mean"), AdaptiveViTImageProcessor(**NATIVE)
        whole = explain(model, image_processor, noise_image())[0].rollout
        monkeypatch.setattr(attention_maps, "CHUNK_SIZE", 250)
        np.testing.assert_allclose(
            explain(model, image_processor, noise_image())[0].rollout, whole, rtol=1e-5
        )

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_leaves_the_model_and_the_library_as_they_were(self, implementation):
        model, image_processor = tiny_model(), AdaptiveViTImageProcessor(**NATIVE)
        model.set_attn_implementation(implementation)
        model.train()
        before = ALL_ATTENTION_FUNCTIONS.get(implementation)
        explain(model, image_processor, noise_image())
        assert ALL_ATTENTION_FUNCTIONS.get(implementation) is before
        assert model.training
        with pytest.raises(ValueError, match="smaller than one patch"):
            explain(model, image_processor, noise_image(4, 4))
        assert ALL_ATTENTION_FUNCTIONS.get(implementation) is before
        assert model.training

    def test_keeps_an_attention_function_of_the_user(self):
        model = tiny_model()
        original = ALL_ATTENTION_FUNCTIONS["sdpa"]

        def mine(*args, **kwargs):
            return original(*args, **kwargs)

        ALL_ATTENTION_FUNCTIONS["sdpa"] = mine
        try:
            explain(model, AdaptiveViTImageProcessor(**NATIVE), noise_image())
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is mine
        finally:
            del ALL_ATTENTION_FUNCTIONS["sdpa"]

    def test_long_sequences_get_no_rollout(self):
        model, image_processor = tiny_model(), AdaptiveViTImageProcessor(**NATIVE)
        [whole] = explain(model, image_processor, noise_image())
        [limited] = explain(model, image_processor, noise_image(), max_rollout_tokens=16)
        assert limited.rollout is None
        assert "rollout" not in limited.pictures
        np.testing.assert_array_equal(limited.attention, whole.attention)
        assert explain(model, image_processor, noise_image(), max_rollout_tokens=17)[0].rollout is not None

    def test_ends_where_tokens_are_dropped_inside_the_encoder(self):
        model = tiny_model()
        # Stands for a token reducer behind the second block.
        model.vit.layers[1].register_forward_hook(lambda module, args, output: output[:, :-3])
        [explanation] = explain(model, AdaptiveViTImageProcessor(**NATIVE), noise_image())
        assert explanation.attention_block == 2
        assert np.isfinite(explanation.rollout).all()


class TestPlaces:
    """Where the kept patches lie on the picture."""

    @pytest.mark.parametrize("processor_class", [AdaptiveViTImageProcessor, ViTImageProcessor])
    def test_on_the_original_of_a_resized_image(self, processor_class):
        model = tiny_model(patch_selector="variance", num_selected_patches=1)
        image, box = one_textured_patch(128, 192, 1, 2, 32)
        image_processor = processor_class(size={"height": 32, "width": 48})
        [explanation] = explain(model, image_processor, PIL.Image.fromarray(image))
        assert explanation.grid == (4, 6)
        assert explanation.picture_size == (128, 192)
        assert explanation.input_size == (32, 48)
        np.testing.assert_allclose(explanation.kept_boxes, [box])
        assert np.array_equal(explanation.picture, image)
        assert explanation.kept[1, 2]

    def test_with_a_remainder_beyond_whole_patches(self):
        model = tiny_model(patch_selector="variance", num_selected_patches=1)
        image, box = one_textured_patch(37, 50, 3, 5, 8)
        [explanation] = explain(model, AdaptiveViTImageProcessor(**NATIVE), image)
        assert explanation.grid == (4, 6)
        assert explanation.patch_span == (37 / 8, 50 / 8)
        np.testing.assert_allclose(explanation.kept_boxes, [box])

    def test_on_the_processed_image_after_a_crop(self):
        model = tiny_model(patch_selector="variance", num_selected_patches=1)
        image, box = one_textured_patch(64, 96, 3, 6, 8)
        image_processor = AdaptiveViTImageProcessor(
            do_resize=False, do_center_crop=True, crop_size={"height": 32, "width": 32}
        )
        [explanation] = explain(model, image_processor, image)
        assert explanation.picture_size == (32, 32)
        moved = np.array(box) - [32, 16, 32, 16]
        np.testing.assert_allclose(explanation.kept_boxes, [moved])
        difference = explanation.picture.astype(int) - image[16:48, 32:64]
        assert np.abs(difference).max() <= 1

    def test_of_a_picture_lying_on_its_side(self, tmp_path):
        model = tiny_model(patch_selector="variance", num_selected_patches=1)
        image, box = one_textured_patch(32, 48, 1, 4, 8)
        lying = PIL.Image.fromarray(image).transpose(PIL.Image.Transpose.ROTATE_90)
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        lying.save(tmp_path / "lying.png", exif=exif)
        for image_processor in (
            AdaptiveViTImageProcessor(**NATIVE),
            ViTImageProcessor(do_resize=False),
        ):
            [explanation] = explain(model, image_processor, tmp_path / "lying.png")
            np.testing.assert_allclose(explanation.kept_boxes, [box])
            assert np.array_equal(explanation.picture, image)

    def test_drawn_pixels(self):
        """The kept patch keeps its colors, all else is gray."""
        model = tiny_model(patch_selector="variance", num_selected_patches=1)
        image, _ = one_textured_patch(64, 64, 2, 5, 8)
        image[..., 0] //= 2
        [explanation] = explain(model, AdaptiveViTImageProcessor(**NATIVE), image)
        figure = explanation.figure("patches")
        shown = figure.axes[0].images[0].get_array()
        side = shown.shape[0] // 8
        colored = (shown.max(axis=-1) != shown.min(axis=-1)).reshape(8, side, 8, side).any(axis=(1, 3))
        assert np.argwhere(colored).tolist() == [[2, 5]]
        [outline] = figure.axes[0].collections
        corners = np.concatenate(outline.get_segments())
        assert corners.min(axis=0).tolist() == [5, 2]
        assert corners.max(axis=0).tolist() == [6, 3]

    def test_large_pictures_are_drawn_small(self, tmp_path):
        model = tiny_model(patch_selector="variance", num_selected_patches=20)
        [explanation] = explain(model, AdaptiveViTImageProcessor(**NATIVE), noise_image(1000, 2500), tmp_path)
        assert explanation.picture.shape == (410, 1024, 3)
        assert explanation.picture_size == (1000, 2500)
        width, height = PIL.Image.open(explanation.files["overview"]).size
        assert width * height < 3e6


class TestNotebook:
    def test_shows_the_overview_and_a_short_text(self, monkeypatch):
        model = tiny_model(patch_selector="variance", num_selected_patches=6)
        [explanation] = explain(
            model, AdaptiveViTImageProcessor(**NATIVE), noise_image(32, 48), names=["a cat"]
        )
        assert explanation._repr_png_().startswith(b"\x89PNG")
        text = repr(explanation)
        assert text.startswith("Explanation('a cat': LABEL_") and text.endswith("%), 6 of 24 patches kept)")
        monkeypatch.setitem(sys.modules, "vit_hf.explanations.drawing", None)  # as without matplotlib
        assert explanation._repr_png_() is None

    def test_single_pictures_are_titled_with_the_name(self):
        model = tiny_model(patch_selector="variance", num_selected_patches=6)
        [explanation] = explain(
            model, AdaptiveViTImageProcessor(**NATIVE), noise_image(32, 48), names=["a cat"]
        )
        for picture in ("patches", "scores", "attention", "rollout"):
            assert "a cat" in [text.get_text() for text in explanation.figure(picture).texts]


class TestScores:
    @pytest.mark.parametrize("selector", ["variance", "attention"])
    def test_are_those_of_the_model(self, selector):
        model, image_processor = tiny_model(patch_selector=selector), AdaptiveViTImageProcessor(**NATIVE)
        image = noise_image(24, 48)
        [explanation] = explain(model, image_processor, image)
        with torch.no_grad():
            outputs = model(**image_processor(images=image, return_tensors="pt"))
        np.testing.assert_allclose(explanation.patch_scores, outputs.patch_scores[0].reshape(3, 6), rtol=1e-6)
        np.testing.assert_array_equal(explanation.kept_patches, outputs.selected_patches[0])

    def test_are_those_of_the_image_processor_if_that_selected(self):
        image = noise_image(50, 48)
        selection = {"patch_selector": "variance", "num_selected_patches": 6}
        model = tiny_model(**selection)
        cut = AdaptiveViTImageProcessor(**RESIZED, return_patches=True, patch_size=8, **selection)
        [explanation] = explain(model, cut, image)
        [whole] = explain(model, AdaptiveViTImageProcessor(**RESIZED), image)
        # Scores of a model that gets all patches and selects the same.
        np.testing.assert_allclose(explanation.patch_scores, whole.patch_scores, rtol=1e-4)
        assert explanation.pictures == ("overview", "patches", "scores", "attention", "rollout")
        assert "the 6 highest are kept" in explanation.figure("scores").texts[1].get_text()
        np.testing.assert_array_equal(explanation.kept_boxes, whole.kept_boxes)
        np.testing.assert_allclose(explanation.rollout, whole.rollout, rtol=1e-4)

    @pytest.mark.parametrize("number", [6, 0.4])
    def test_of_cut_patches_among_which_the_model_selects(self, number):
        model = tiny_model(patch_selector="gradient", num_selected_patches=number)
        cut = AdaptiveViTImageProcessor(**NATIVE, return_patches=True, patch_size=8)
        [explanation] = explain(model, cut, noise_image(35, 50))
        [whole] = explain(model, AdaptiveViTImageProcessor(**NATIVE), noise_image(35, 50))
        np.testing.assert_allclose(explanation.patch_scores, whole.patch_scores, rtol=1e-4)
        np.testing.assert_array_equal(explanation.kept_patches, whole.kept_patches)
        assert explanation.input_size == (35, 50)

    def test_padding_of_the_loader_is_no_patch(self):
        cut = AdaptiveViTImageProcessor(
            **NATIVE, return_patches=True, patch_size=8, patch_selector="variance", num_selected_patches=9
        )
        [explanation] = explain(tiny_model(), cut, noise_image(16, 16))
        assert explanation.kept_patches.tolist() == [0, 1, 2, 3]
        assert np.isfinite(explanation.attention).all()

    @pytest.mark.parametrize("loader_selects", [False, True])
    def test_an_image_with_fewer_patches_than_are_selected(self, loader_selects):
        selection = {"patch_selector": "variance", "num_selected_patches": 9}
        cut = AdaptiveViTImageProcessor(
            **NATIVE, return_patches=True, patch_size=8, **(selection if loader_selects else {})
        )
        [explanation] = explain(tiny_model(**selection), cut, noise_image(16, 24), pictures=["overview"])
        assert explanation.kept_patches.tolist() == [0, 1, 2, 3, 4, 5]
        assert np.isfinite(explanation.attention).all()


def grid_tokens(rows: int, columns: int) -> PatchTokens:
    grid = torch.tensor([[rows, columns]])
    return PatchTokens(torch.zeros(1, rows * columns, 32), grid_coordinates(rows, columns)[None], grid)


class TestPositions:
    @pytest.mark.parametrize("encoding", sorted(set(POSITION_ENCODINGS) - {"none"}))
    def test_similarity_is_symmetric_with_ones_on_the_diagonal(self, encoding):
        model = tiny_model(position_encoding=encoding, image_size=[24, 40])
        positions = position_similarity(model)
        assert positions.similarity.shape == (3, 5, 3, 5)
        matrix = positions.similarity.reshape(15, 15)
        assert matrix.max() == pytest.approx(1, abs=1e-5)
        if encoding.startswith("relative_bias"):
            # What is right of a patch may count more than what is left of it, and more than itself.
            np.testing.assert_allclose(matrix.max(axis=1), 1, atol=1e-5)
            bias = model.vit.embeddings.position_encoding.bias(grid_tokens(3, 5), 0, num_prefix=0)[0].mean(
                dim=0
            )
            np.testing.assert_allclose(
                matrix[4] / matrix[4, 4], (bias[4] - bias[4, 4]).exp().detach(), rtol=1e-4
            )
            return
        np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-5)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
        assert np.abs(matrix).max() <= 1 + 1e-5
        assert (matrix[np.triu_indices(15, 1)] < 0.999).all()

    def test_of_a_learned_table(self):
        model = tiny_model()
        table = model.vit.embeddings.position_encoding.position_embeddings[0, 1:].detach()
        expected = torch.nn.functional.cosine_similarity(table[:, None], table[None], dim=-1)
        similarity = position_similarity(model).similarity.reshape(16, 16)
        np.testing.assert_allclose(similarity, expected, atol=1e-5)

    def test_of_rotation_is_the_mean_cosine_of_differences_of_angles(self):
        positions = position_similarity(tiny_model(position_encoding={"type": "rotary", "base": 50.0}))
        frequencies = 50.0 ** -np.array([0, 0.5])
        cosines = [np.cos(2 * frequencies).mean(), np.cos(3 * frequencies).mean()]
        assert positions.similarity[0, 0, 2, 3] == pytest.approx(np.mean(cosines), abs=1e-5)

    def test_large_grids_are_sampled(self):
        positions = position_similarity(tiny_model(position_encoding="sinusoidal_2d", image_size=[80, 320]))
        assert positions.rows.tolist() == list(range(10))
        assert positions.columns.tolist() == [0, 6, 13, 20, 26, 32, 39]
        assert positions.similarity.shape == (10, 7, 10, 40)
        np.testing.assert_allclose(positions.similarity[4, 2, 4, 13], 1, rtol=1e-5)

    def test_of_videos_is_refused(self):
        with pytest.raises(ValueError, match="num_frames=4"):
            position_similarity(AdaptiveViTModel(tiny_config(num_frames=4)))

    def test_none_is_said_in_words(self):
        positions = position_similarity(tiny_model(position_encoding="none"))
        assert positions.similarity is None
        text = " ".join(text.get_text() for text in positions.figure().texts)
        assert "'none'" in text


class TestPictures:
    def test_all_are_written(self, tmp_path):
        model = tiny_model(
            patch_selector="variance", token_reducer="merge", keep_rate=0.6, reduction_layers=[1]
        )
        explanations = explain(
            model,
            AdaptiveViTImageProcessor(**RESIZED),
            [noise_image(), noise_image(40, 64)],
            tmp_path / "new" / "folder",
            pictures=PICTURES,
            names=["a", "b"],
        )
        for explanation in explanations:
            assert sorted(explanation.files) == sorted({*PICTURES} - {"windows"})  # which a Swin has
            for name, path in explanation.files.items():
                expected = "positions.png" if name == "positions" else f"{explanation.name}_{name}.png"
                assert path == tmp_path / "new" / "folder" / expected
                width, height = PIL.Image.open(path).size
                assert 200 < width < 2000
                assert 200 < height < 2000

    @pytest.mark.parametrize("size", [(8, 8), (300, 16), (16, 300), (64, 30)])
    @pytest.mark.parametrize("selector", [None, "variance"])
    def test_any_shape_fits_its_sheet(self, size, selector):
        number = None if selector is None else 1
        [explanation] = explain(
            tiny_model(
                patch_selector=selector,
                num_selected_patches=number,
                id2label={index: f"${index}_{{" + "a long name, " * 20 for index in range(5)},
            ),
            AdaptiveViTImageProcessor(**NATIVE),
            noise_image(*size),
            labels=[2],
        )
        for picture in explanation.pictures:
            figure = explanation.figure(picture)
            sheet = figure.bbox
            boxes = [text.get_window_extent() for text in figure.texts]
            boxes += [axes.get_tightbbox() for axes in figure.axes]
            for box in boxes:
                assert box.x0 >= 0 and box.y0 >= 0
                assert box.x1 <= sheet.x1 and box.y1 <= sheet.y1

    def test_dense_models_have_no_scores(self, tmp_path):
        [explanation] = explain(
            tiny_model(), AdaptiveViTImageProcessor(**RESIZED), noise_image(), tmp_path, PICTURES
        )
        assert explanation.patch_scores is None
        assert explanation.kept.all()
        assert set(explanation.files) == {"overview", "patches", "attention", "rollout", "positions"}
        with pytest.raises(ValueError, match=r"'scores'.*choose one of"):
            explanation.figure("scores")

    def test_flat_images_and_grey_ones(self, tmp_path):
        """Scores of zero everywhere, and one channel."""
        model = tiny_model(num_channels=1, patch_selector="variance")
        image_processor = AdaptiveViTImageProcessor(
            **NATIVE, do_convert_rgb=False, image_mean=[0.5], image_std=[0.5]
        )
        image = PIL.Image.new("L", (32, 24), 77)
        [explanation] = explain(model, image_processor, image, tmp_path, IMAGE_PICTURES)
        assert explanation.picture.shape == (24, 32, 3)
        assert (explanation.picture == 77).all()
        assert len(explanation.files) == 5

    def test_channels_that_are_no_colors(self):
        model = tiny_model(num_channels=5)
        image_processor = AdaptiveViTImageProcessor(
            **NATIVE, do_convert_rgb=False, image_mean=[0.5] * 5, image_std=[0.5] * 5
        )
        image = np.full((32, 32, 5), 100, dtype=np.uint8)
        image_processor.input_data_format = "channels_last"
        [explanation] = explain(model, image_processor, image)
        assert explanation.picture.shape == (32, 32, 3)
        assert (explanation.picture == 100).all()

    def test_settings_of_matplotlib_neither_change_nor_matter(self, monkeypatch):
        import matplotlib as mpl

        # Importing pyplot would choose a backend for the whole program.
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
        [explanation] = explain(tiny_model(), AdaptiveViTImageProcessor(**NATIVE), noise_image())
        with mpl.rc_context({"text.color": "red", "figure.facecolor": "black"}):
            figure = explanation.figure()
            assert mpl.rcParams["text.color"] == "red"
        assert figure.get_facecolor() == (1, 1, 1, 1)

    def test_without_matplotlib(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        for name in [
            name for name in sys.modules if name.startswith(("vit_hf.explanations.", "vit_hf.figures"))
        ]:
            if not name.endswith("_maps"):
                monkeypatch.delitem(sys.modules, name)
        model, image_processor = tiny_model(), AdaptiveViTImageProcessor(**NATIVE)
        [explanation] = explain(model, image_processor, noise_image())
        assert np.isfinite(explanation.rollout).all()
        with pytest.raises(ImportError, match=r"pip install vit_hf\[train\]"):
            explain(model, image_processor, noise_image(), tmp_path)


class TestAnswers:
    def explain(self, labels=None, **fields):
        model = tiny_model(**fields)
        [explanation] = explain(model, AdaptiveViTImageProcessor(**NATIVE), noise_image(), labels=labels)
        return model, explanation.prediction

    def test_of_one_class(self):
        _, prediction = self.explain(labels="LABEL_3", problem_type="single_label_classification")
        best = int(prediction.logits.argmax())
        assert prediction.answers == [f"LABEL_{best}"] == [prediction.top[0][0]]
        assert prediction.probabilities.sum() == pytest.approx(1)
        assert prediction.correct is (best == 3)
        assert len(prediction.top) == 5
        with pytest.raises(ValueError, match=r"'LABEL_9' is not a class.*LABEL_0"):
            self.explain(labels="LABEL_9")
        assert self.explain(labels=best)[1].logits.shape == (5,)

    def test_number_and_name_of_the_true_class(self):
        model = tiny_model(id2label={0: "a", 1: "b", 2: "c", 3: "d", 4: "e"})
        image_processor = AdaptiveViTImageProcessor(**NATIVE)
        [answer] = explain(model, image_processor, noise_image())[0].prediction.answers
        number = "abcde".index(answer)
        for label in (answer, number, np.int64(number)):
            assert explain(model, image_processor, noise_image(), labels=[label])[0].prediction.correct

    def test_of_several_classes(self):
        _, prediction = self.explain(
            labels=[["LABEL_1", 2]], problem_type="multi_label_classification", num_labels=4
        )
        expected = [f"LABEL_{index}" for index in np.flatnonzero(prediction.logits >= 0)]
        assert sorted(prediction.answers) == expected
        assert prediction.truths == ["LABEL_1", "LABEL_2"]
        assert prediction.correct == (expected == ["LABEL_1", "LABEL_2"])

    def test_of_a_regression(self):
        _, prediction = self.explain(labels=[2.5], num_labels=1, problem_type="regression")
        assert prediction.probabilities is None
        assert prediction.correct is None
        assert prediction.truths == ["2.5"]
        assert prediction.top == [("LABEL_0", pytest.approx(prediction.logits[0]))]


class TestImages:
    def test_of_every_kind(self, tmp_path):
        model, image_processor = tiny_model(), AdaptiveViTImageProcessor(**NATIVE)
        image = noise_image()
        path = tmp_path / "cat.png"
        image.save(path)
        array = np.asarray(image)
        kinds = [path, str(path), image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
        explanations = explain(model, image_processor, kinds)
        for explanation in explanations:
            np.testing.assert_allclose(explanation.rollout, explanations[0].rollout, rtol=1e-5)
            np.testing.assert_array_equal(explanation.picture, array)
        assert [explanation.name for explanation in explanations] == [
            "cat",
            "cat_2",
            "image_2",
            "image_3",
            "image_4",
        ]
        assert len(explain(model, image_processor, (image for _ in range(2)))) == 2

    def test_names(self):
        sources = ["a/cat.jpg", "b/cat.png", "cat_2.png", "http://x.org/d o/g.png?size=3", "A" * 5000]
        assert unique_names(sources) == ["cat", "cat_2", "cat_2_2", "g", "image_4"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"images": []}, "no images"),
            ({"images": "nowhere.png"}, r"nowhere\.png"),
            ({"pictures": ["maps"]}, r"'maps' is unknown.*'overview'"),
            ({"labels": [1, 2]}, "2 labels for 1 images"),
            ({"labels": [7]}, r"7 is outside 0\.\.4"),
            ({"names": ["a", "b"]}, "one for each image"),
        ],
    )
    def test_errors(self, arguments, message):
        arguments = {"images": noise_image(), **arguments}
        with pytest.raises(ValueError, match=message):
            explain(tiny_model(), AdaptiveViTImageProcessor(**NATIVE), **arguments)

    def test_models_of_other_classes(self):
        from transformers import ViTConfig

        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        model = ViTForImageClassification(ViTConfig(**{name: TINY[name] for name in names}))
        with pytest.raises(TypeError, match="AdaptiveViTForImageClassification"):
            explain(model, ViTImageProcessor(), noise_image())
