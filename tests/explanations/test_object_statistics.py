"""Statistics of objects: `explain(..., boxes=...)` and `write_statistics`."""

import csv
import json

import numpy as np
import PIL.Image
import pytest
from transformers import CLIPImageProcessor, ConvNextImageProcessor, ViTImageProcessor

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor, AdaptiveViTImageProcessorPil
from vit_hf.explanations.explain import explain, write_statistics


NATIVE = {"do_resize": False}


def tiny_model(**fields) -> AdaptiveViTForImageClassification:
    return AdaptiveViTForImageClassification(tiny_config(**fields)).eval()


def checkered(height: int, width: int, boxes: list[list[int]]) -> PIL.Image.Image:
    """Gray but for checkers of 4 pixels in `boxes`, which are the patches that "variance" keeps."""
    image = np.full((height, width, 3), 128, dtype=np.uint8)
    for x0, y0, x1, y1 in boxes:
        checkers = (np.indices((y1 - y0, x1 - x0)) // 4).sum(axis=0) % 2 * 255
        image[y0:y1, x0:x1] = checkers[..., None]
    return PIL.Image.fromarray(image)


def explain_two_patches(boxes, **options):
    """Patches (0, 0) and (2, 1) of a grid of 4 x 4 are kept, of 8 pixels a side."""
    model = tiny_model(patch_selector="variance", num_selected_patches=2)
    image = checkered(32, 32, [[0, 0, 8, 8], [8, 16, 16, 24]])
    options = {"images": image, "image_processor": AdaptiveViTImageProcessor(**NATIVE), **options}
    [explanation] = explain(model, boxes=[boxes], **options)
    if options["images"] is image:
        assert explanation.kept_patches.tolist() == [0, 9]
    return explanation


class TestNumbers:
    def test_of_two_objects(self):
        # One of 12 x 8 pixels, of which the first patch covers 8 x 8; and one that nothing covers.
        statistics = explain_two_patches([[0, 0, 12, 8], [24, 24, 32, 32]]).statistics
        assert statistics == {
            "num_patches": 16,
            "num_kept": 2,
            "num_objects": 2,
            "kept_on_object": 0.5,
            "object_covered": pytest.approx(64 / (96 + 64)),
            "centers_hit": 0.5,
        }

    @pytest.mark.parametrize(
        ("box", "kept_on_object", "covered", "hit"),
        [
            # A quarter of the patch: on the object. Less: not.
            ([6, 0, 32, 8], 0.5, 16 / (26 * 8), 0),
            ([6.1, 0, 32, 8], 0, 15.2 / (25.9 * 8), 0),
            # Smaller than a patch, and a quarter of the object in each of four patches.
            ([6, 6, 10, 10], 0.5, 1 / 4, 0),
            ([7, 7, 11, 11], 0, 1 / 16, 0),
            # A thin line: all that it could have in common with a patch.
            ([0, 3, 32, 4], 0.5, 1 / 4, 0),
            # Its center is in the second patch.
            ([10, 18, 14, 22], 0.5, 1, 1),
            # A center on the edge belongs to the patch on the right and below.
            ([4, 4, 12, 12], 0.5, 1 / 4, 0),
            ([4, 12, 12, 20], 0.5, 1 / 4, 1),
            # All of the image, with its center in another patch.
            ([0, 0, 32, 32], 1, 1 / 8, 0),
        ],
    )
    def test_of_one_object(self, box, kept_on_object, covered, hit):
        statistics = explain_two_patches([box]).statistics
        assert statistics["kept_on_object"] == kept_on_object
        assert statistics["object_covered"] == pytest.approx(covered)
        assert statistics["centers_hit"] == hit

    def test_without_objects_and_without_boxes(self):
        statistics = explain_two_patches([]).statistics
        assert statistics["num_objects"] == 0
        assert [statistics[name] for name in ("kept_on_object", "object_covered", "centers_hit")] == [
            None
        ] * 3
        assert explain_two_patches(None).statistics == {"num_patches": 16, "num_kept": 2}

    def test_of_tokens(self):
        model = tiny_model(token_reducer="merge", keep_rate=0.5, reduction_layers=[0, 2])
        image = checkered(32, 32, [[0, 0, 8, 8]])
        [explanation] = explain(model, AdaptiveViTImageProcessor(**NATIVE), image)
        assert explanation.statistics == {
            "num_patches": 16,
            "num_kept": 16,
            "tokens_after_block_1": 8,
            "tokens_after_block_3": 4,
        }


class TestPlaces:
    """A box around the one patch that is kept stays around it, whatever the processor does."""

    @pytest.mark.parametrize(
        ("processor_class", "options", "size", "box"),
        [
            (AdaptiveViTImageProcessor, {"size": {"height": 32, "width": 48}}, (128, 192), [64, 32, 96, 64]),
            (ViTImageProcessor, {"size": {"height": 32, "width": 48}}, (128, 192), [64, 32, 96, 64]),
            # Beyond whole patches there is a remainder of 5 and 2 pixels.
            (AdaptiveViTImageProcessor, {**NATIVE}, (37, 50), [40, 24, 48, 32]),
            (
                AdaptiveViTImageProcessor,
                {**NATIVE, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
                (64, 96),
                [48, 24, 56, 32],
            ),
            (
                AdaptiveViTImageProcessorPil,
                {**NATIVE, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
                (64, 96),
                [48, 24, 56, 32],
            ),
            # A border of 8 pixels above and below.
            (
                AdaptiveViTImageProcessor,
                {**NATIVE, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}},
                (32, 80),
                [40, 16, 48, 24],
            ),
            (
                AdaptiveViTImageProcessor,
                {**NATIVE, "do_pad": True, "pad_size": {"height": 64, "width": 64}},
                (40, 48),
                [16, 8, 24, 16],
            ),
            (
                AdaptiveViTImageProcessor,
                {**NATIVE, "do_pad": True, "pad_size": {"height": 64, "width": 64}, "return_patches": True},
                (40, 48),
                [16, 8, 24, 16],
            ),
            # Halved, then cropped by 16 pixels on the left and on the right.
            (
                CLIPImageProcessor,
                {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
                (64, 128),
                [48, 16, 64, 32],
            ),
        ],
    )
    def test_through_a_processor(self, processor_class, options, size, box):
        if options.get("return_patches"):
            options = {**options, "patch_size": 8}
        model = tiny_model(patch_selector="variance", num_selected_patches=1)
        image = checkered(*size, [box])
        [explanation] = explain(model, processor_class(**options), image, boxes=[[box]])
        np.testing.assert_allclose(explanation.boxes, explanation.kept_boxes)
        assert explanation.statistics["object_covered"] == pytest.approx(1)

    def test_what_is_cropped_away_counts_as_not_covered(self):
        image_processor = AdaptiveViTImageProcessor(
            do_resize=False, do_center_crop=True, crop_size={"height": 32, "width": 32}
        )
        box = [0, 0, 48, 32]  # of which the crop shows the right third
        [explanation] = explain(tiny_model(), image_processor, checkered(32, 64, [box]), boxes=[[box]])
        np.testing.assert_allclose(explanation.boxes, [[-16, 0, 32, 32]])
        assert explanation.kept.all()
        assert explanation.statistics["object_covered"] == pytest.approx(2 / 3)

    def test_reach_to_the_edge_of_the_image_at_most(self):
        explanation = explain_two_patches([[-5, -5, 8, 8]])
        np.testing.assert_allclose(explanation.boxes, [[0, 0, 8, 8]])

    def test_of_channels_that_are_no_colors(self):
        image_processor = AdaptiveViTImageProcessor(
            size={"height": 32, "width": 32},
            do_convert_rgb=False,
            image_mean=[0.5] * 5,
            image_std=[0.5] * 5,
        )
        image_processor.input_data_format = "channels_last"
        image = np.full((64, 32, 5), 100, dtype=np.uint8)
        [explanation] = explain(tiny_model(num_channels=5), image_processor, image, boxes=[[[0, 0, 16, 16]]])
        assert explanation.picture_size == (32, 32)
        np.testing.assert_allclose(explanation.boxes, [[0, 0, 16, 8]])

    def test_are_drawn(self):
        explanation = explain_two_patches([[4, 8, 20, 32]])
        axes = explanation.figure("patches").axes[0]
        [drawn] = axes.patches
        # In units of patches.
        assert drawn.get_bbox().extents.tolist() == [0.5, 1, 2.5, 4]
        assert "cover 16.7%" in " ".join(text.get_text() for text in explanation.figure("overview").texts)
        assert not explain_two_patches(None).figure("patches").axes[0].patches


class TestErrors:
    @pytest.mark.parametrize(
        ("boxes", "message"),
        [
            ([[[0, 0, 8]]], r"boxes\[0\] must be a list of \[x0, y0, x1, y1\]"),
            ([[0, 0, 8, 8]], r"boxes\[0\] must be a list"),
            ([["cat"]], r"boxes\[0\] must be a list"),
            ([[[8, 0, 0, 8]]], r"\[8.0, 0.0, 0.0, 8.0\].*x0 < x1"),
            ([[[0, 0, float("nan"), 8]]], "x0 < x1"),
            ([[], []], "boxes for 2 images, but 1 images"),
            ([[[40, 0, 48, 8]]], r"\[40.0, 0.0, 48.0, 8.0\] lies beyond the image of 32x32"),
        ],
    )
    def test_boxes(self, boxes, message):
        with pytest.raises(ValueError, match=message):
            explain(
                tiny_model(),
                AdaptiveViTImageProcessor(**NATIVE),
                PIL.Image.new("RGB", (32, 32)),
                boxes=boxes,
            )

    def test_processors_that_cannot_be_followed(self):
        image_processor = ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.5)
        image = PIL.Image.new("RGB", (64, 64))
        explain(tiny_model(), image_processor, image)
        with pytest.raises(ValueError, match=r"mapped through ConvNextImageProcessor.*\(32, 32\)"):
            explain(tiny_model(), image_processor, image, boxes=[[[0, 0, 8, 8]]])


class TestFiles:
    def explanations(self):
        model = tiny_model(patch_selector="variance", num_selected_patches=2)
        image = checkered(32, 32, [[0, 0, 8, 8], [8, 16, 16, 24]])
        best = int(explain(model, AdaptiveViTImageProcessor(**NATIVE), image)[0].prediction.logits.argmax())
        return best, explain(
            model,
            AdaptiveViTImageProcessor(**NATIVE),
            [image] * 3,
            names=["a", "b", "c, d"],
            labels=[best] * 3,
            boxes=[None, [[0, 0, 12, 8]], []],
        )

    def test_csv(self, tmp_path):
        best, explanations = self.explanations()
        path = write_statistics((item for item in explanations), tmp_path / "new" / "numbers.csv")
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        first = {
            "image": "a",
            "answer": f"LABEL_{best}",
            "correct": "True",
            "num_patches": "16",
            "num_kept": "2",
        }
        absent = dict.fromkeys(("num_objects", "kept_on_object", "object_covered", "centers_hit"), "")
        assert rows[0] == first | absent
        assert float(rows[1]["object_covered"]) == pytest.approx(2 / 3)
        assert (rows[2]["image"], rows[2]["num_objects"], rows[2]["centers_hit"]) == ("c, d", "0", "")

    def test_json(self, tmp_path):
        _, explanations = self.explanations()
        rows = json.loads(write_statistics(explanations, tmp_path / "numbers.json").read_text())
        assert [row["image"] for row in rows] == ["a", "b", "c, d"]
        assert rows[1]["centers_hit"] == 1 and rows[1]["correct"] is True
        assert "centers_hit" not in rows[0]
        assert rows[2]["centers_hit"] is None

    def test_answers_of_other_kinds(self, tmp_path):
        answers = []
        for problem in ("regression", "multi_label_classification"):
            model = tiny_model(num_labels=2, problem_type=problem)
            explanations = explain(model, AdaptiveViTImageProcessor(**NATIVE), checkered(32, 32, []))
            rows = json.loads(write_statistics(explanations, tmp_path / "numbers.json").read_text())
            answers.append((rows[0], explanations[0].prediction))
        (row, prediction), (several, prediction_of_several) = answers
        np.testing.assert_allclose(
            [float(text) for text in row["answer"].split(", ")], prediction.logits, rtol=1e-4
        )
        assert several["answer"] == ", ".join(prediction_of_several.answers)
        assert row["correct"] is None

    def test_other_suffixes(self, tmp_path):
        with pytest.raises(ValueError, match=r"as \.csv or \.json: 'numbers\.txt'"):
            write_statistics([], tmp_path / "numbers.txt")
