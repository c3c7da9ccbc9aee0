"""Objects of images of any size."""

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.helpers.classifiers import picture
from tests.helpers.dense import (
    KNOWING,
    KnowingDetector,
    detr,
    eomt,
    mask2former,
    places,
    segformer,
)
from vit_hf import detect_tiled
from vit_hf.inference.box_merging import Candidates, MergeOptions, merge_greedily, merge_matched, suppress
from vit_hf.inference.dense_tiles import cover_windows, windows_in_order
from vit_hf.inference.detect_tiles import ObjectMask


def sorted_rows(boxes, labels) -> list[list[float]]:
    rows = np.column_stack((np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(labels).reshape(-1)))
    return sorted(rows.round(2).tolist())


def sides(draw, length: int, longest: int, number: int) -> list[tuple[int, int]]:
    """Begins and ends along an axis, no two of which are the same."""
    taken, result = set(), []
    for _ in range(number):
        low = draw(st.integers(0, length - 2))
        high = draw(st.integers(low + 1, min(length, low + longest)))
        assume(not {low, high} & taken)
        taken |= {low, high}
        result.append((low, high))
    return result


@st.composite
def scenes(draw):
    """An image, its objects, and how it is cut: objects may crowd, and none is longer than a tile."""
    height, width = draw(st.integers(20, 150)), draw(st.integers(20, 150))
    tile = draw(st.integers(16, 80))
    overlap, halo = draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7])), draw(st.integers(0, 3))
    number = draw(st.integers(0, 9))
    rows = sides(draw, height, tile - 2 * halo - 1, number)
    columns = sides(draw, width, tile - 2 * halo - 1, number)
    # Nothing that ends or begins exactly at the border of a tile: it could not be told from its neighbor.
    grid = cover_windows((height, width), tile, overlap, halo)[0]
    for axis, length, spans in ((grid.rows, height, rows), (grid.columns, width, columns)):
        borders = {place for start in axis.starts for place in (start, start + axis.size)} - {0, length}
        assume(not borders & {place for span in spans for place in span})
    boxes = [[left, top, right, bottom] for (top, bottom), (left, right) in zip(rows, columns, strict=True)]
    labels = draw(st.lists(st.integers(0, 1), min_size=number, max_size=number))
    return (height, width), np.array(boxes, np.float64).reshape(-1, 4), labels, tile, overlap, halo


class TestMerging:
    @given(scene=scenes(), class_wise=st.booleans())
    @settings(max_examples=150, deadline=None)
    def test_clipped_objects_are_found_once_and_whole(self, scene, class_wise):
        size, boxes, labels, tile, overlap, halo = scene
        model = KnowingDetector(size[1], boxes, labels)
        result = detect_tiled(
            model, places(*size), KNOWING, tile=tile, overlap=overlap, halo=halo, class_wise=class_wise
        )
        assert sorted_rows(result.boxes, result.labels) == sorted_rows(boxes, labels)

    @pytest.mark.parametrize("overlap", [0.0, 0.2])
    def test_objects_larger_than_tiles_are_put_together(self, overlap):
        boxes = np.array([[3, 5, 190, 170], [20.5, 60.25, 90, 70], [100, 150, 105, 155]])
        model = KnowingDetector(200, boxes, [0, 0, 1])
        result = detect_tiled(model, places(180, 200), KNOWING, tile=50, overlap=overlap)
        assert result.num_candidates >= 19
        assert sorted_rows(result.boxes, result.labels) == sorted_rows(boxes, [0, 0, 1])

    def test_hundreds_of_objects(self):
        generator = np.random.default_rng(0)
        centers = np.stack(np.meshgrid(np.arange(5, 395, 9.7), np.arange(5, 395, 9.3)), -1).reshape(-1, 2)
        sizes = generator.uniform(3, 7, (len(centers), 2))
        boxes = np.concatenate((centers - sizes, centers + sizes), axis=1)
        boxes = (8 * boxes).round().clip(0, 3200) / 8  # exact in float32
        labels = generator.integers(0, 3, len(boxes))
        result = detect_tiled(
            KnowingDetector(400, boxes, labels), places(400, 400), KNOWING, tile=96, overlap=0.25
        )
        assert sorted_rows(result.boxes, result.labels) == sorted_rows(boxes, labels)

    def test_scales_find_an_object_once(self):
        boxes = np.array([[10, 12, 30, 31], [40, 20, 110, 95], [5, 60, 150, 110]])
        windows = []
        grids = cover_windows((120, 160), 64, 0.25, 0, (1, 0.5))
        parts = {"boxes": [], "windows": [], "cut": []}
        for index, window in enumerate(windows_in_order(grids)):
            windows.append(window)
            for box in boxes:
                low = np.maximum(box[:2], (window.left, window.top))
                high = np.minimum(box[2:], (window.right, window.bottom))
                if (high > low).all():
                    parts["boxes"].append([*low, *high])
                    parts["windows"].append(index)
                    parts["cut"].append(bool((low > box[:2]).any() or (high < box[2:]).any()))
        number = len(parts["boxes"])
        found = Candidates(
            np.array(parts["boxes"]),
            np.ones(number),
            np.zeros(number, np.int64),
            np.array(parts["windows"]),
            np.array(parts["cut"]),
        )
        merged = merge_matched(found, windows, grids, MergeOptions())
        assert sorted(merged.boxes.tolist()) == sorted(boxes.tolist())

    @staticmethod
    def two_windows(boxes, scores, windows, labels=None):
        grids = cover_windows((40, 100), (40, 60), 1 / 3)
        found = Candidates(
            np.array(boxes, np.float64),
            np.array(scores),
            np.zeros(len(boxes), np.int64) if labels is None else np.array(labels),
            np.array(windows),
            np.zeros(len(boxes), bool),
        )
        return found, list(windows_in_order(grids)), grids

    def test_jitter_is_merged(self):
        found = self.two_windows([[42, 5, 56, 20], [43, 6, 58, 21]], [0.7, 0.9], [0, 1])
        for merge in (merge_matched, suppress):
            assert merge(*found, MergeOptions(0.4)).boxes.tolist() == [[43, 6, 58, 21]]
        assert merge_greedily(*found, MergeOptions(0.4)).boxes.tolist() == [[42, 5, 58, 21]]

    def test_classes(self):
        found = self.two_windows([[42, 5, 56, 20], [43, 6, 58, 21]], [0.7, 0.9], [0, 1], [0, 1])
        for merge in (merge_matched, suppress, merge_greedily):
            assert len(merge(*found, MergeOptions(0.4)).boxes) == 2
            assert len(merge(*found, MergeOptions(0.4, class_wise=False)).boxes) == 1

    def test_objects_of_one_window_are_never_merged(self):
        found = self.two_windows([[42, 5, 56, 20], [42, 5, 56, 21]], [0.7, 0.9], [0, 0])
        for merge in (merge_matched, suppress, merge_greedily):
            assert len(merge(*found, MergeOptions(0.4)).boxes) == 2

    def test_unconfirmed_piece_goes_with_the_whole(self):
        found, windows, grids = self.two_windows([[41, 5, 80, 30], [46, 12, 60, 18]], [0.7, 0.9], [1, 0])
        found = Candidates(
            found.boxes[::-1], found.scores[::-1], found.labels, np.array([0, 1]), np.array([1, 0], bool)
        )
        merged = merge_matched(found, windows, grids, MergeOptions())
        assert merged.boxes.tolist() == [[41, 5, 80, 30]]

    @pytest.mark.parametrize("merging", ["match", "nms", "greedy"])
    def test_nothing_found(self, merging):
        model = KnowingDetector(50, np.zeros((0, 4)), [])
        result = detect_tiled(model, places(40, 50), KNOWING, tile=20, merging=merging)
        assert len(result) == 0
        assert result.boxes.shape == (0, 4)


class TestRunning:
    def test_only_tiles_that_matter(self):
        boxes = np.array([[5, 5, 15, 15], [85, 65, 95, 75]])
        model = KnowingDetector(100, boxes, [0, 1])
        marked = np.zeros((4, 5), bool)
        marked[3, 4] = True
        result = detect_tiled(model, places(80, 100), KNOWING, tile=20, overlap=0, tile_selector=marked)
        assert model.calls == [(60, 80, 20, 20)]
        assert (result.num_tiles, result.num_computed) == (20, 1)
        assert sorted_rows(result.boxes, result.labels) == sorted_rows(boxes[1:], [1])

    def test_no_data(self):
        image = places(40, 40)
        image[:20] = 0
        model = KnowingDetector(40, [[2, 25, 9, 30]], [0])
        result = detect_tiled(model, image, KNOWING, tile=20, overlap=0, nodata=0)
        assert len(model.calls) == 2
        assert result.num_computed == 2
        assert len(result) == 1

    def test_interrupted_run_goes_on(self, tmp_path):
        boxes = np.array([[5, 5, 35, 15], [45, 25, 55, 35]])
        journal = tmp_path / "tiles.jsonl"
        common = {"tile": 20, "overlap": 0.25, "batch_size": 1, "journal": journal}
        model = KnowingDetector(60, boxes, [0, 1])
        forward = model.forward

        def interrupted(pixel_values):
            if len(model.calls) == 5:
                raise KeyboardInterrupt
            return forward(pixel_values)

        model.forward = interrupted
        with pytest.raises(KeyboardInterrupt):
            detect_tiled(model, places(40, 60), KNOWING, **common)
        with open(journal, "a") as file:
            file.write('{"window": [0, 1')  # cut short
        model.forward = forward
        result = detect_tiled(model, places(40, 60), KNOWING, **common)
        assert len(model.calls) == len(set(model.calls)) == result.num_tiles
        assert sorted_rows(result.boxes, result.labels) == sorted_rows(boxes, [0, 1])
        again = detect_tiled(model, places(40, 60), KNOWING, **common)
        assert len(model.calls) == result.num_tiles  # all were there
        assert torch.equal(again.boxes, result.boxes)
        detect_tiled(model, places(40, 60), KNOWING, **common, resume=False)
        assert len(model.calls) == 2 * result.num_tiles
        for line in journal.read_text().splitlines():
            json.loads(line)

    @pytest.mark.parametrize("fields", [{}, {"patch_selector": "variance", "num_selected_patches": 0.5}])
    def test_detr_over_an_adaptive_vit(self, fields):
        model, processor = detr(**fields)
        image = picture(64, 64)
        result = detect_tiled(model, image, processor, threshold=0.0)
        with torch.inference_mode():
            outputs = model(**processor(image, return_tensors="pt"))
        (expected,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(64, 64)])
        order = expected["scores"].argsort(descending=True)
        torch.testing.assert_close(result.scores, expected["scores"][order], atol=1e-5, rtol=0)
        torch.testing.assert_close(result.boxes, expected["boxes"][order].clamp(0, 64), atol=1e-3, rtol=0)
        many = detect_tiled(model, picture(100, 150), processor, threshold=0.0, scales=(1, 0.5), batch_size=3)
        assert len(many) > 0
        low, high = many.boxes[:, :2], many.boxes[:, 2:]
        assert (low >= 0).all() and (high <= torch.tensor([150, 100])).all() and (high > low).all()

    def test_image_less_than_a_tile_keeps_its_proportions(self):
        model, processor = detr()
        seen = []
        model.register_forward_pre_hook(
            lambda module, args, inputs: seen.append(inputs["pixel_values"]), with_kwargs=True
        )
        detect_tiled(model, np.full((20, 50, 3), 255, np.uint8), processor, threshold=0.0)
        (values,) = seen
        assert values.shape[-2:] == (64, 64)
        bright = values[0, 0] > 1
        assert bright[:20, :50].all()
        assert bright.sum() == 1000

    @pytest.mark.parametrize("build", [mask2former, eomt], ids=["mask2former", "eomt"])
    def test_instances_have_masks(self, build):
        model, processor = build()
        result = detect_tiled(model, picture(80, 100), processor, threshold=0.05, tile=64)
        assert len(result) == len(result.masks) > 0
        for box, mask in zip(result.boxes.numpy(), result.masks, strict=True):
            assert mask.area > 0
            assert np.array_equal(mask.box, box)
            assert mask.top + mask.shape[0] <= 80 and mask.left + mask.shape[1] <= 100

    def test_masks_of_an_interrupted_run(self, tmp_path):
        model, processor = mask2former()
        common = {"threshold": 0.05, "tile": 64, "journal": tmp_path / "tiles.jsonl"}
        first = detect_tiled(model, picture(80, 100), processor, **common)
        model.forward = None  # all tiles are in the journal
        again = detect_tiled(model, picture(80, 100), processor, **common)
        assert again.masks == first.masks
        assert torch.equal(again.boxes, first.boxes)


class TestObjectMask:
    def test_round_trip_and_union(self):
        pixels = np.zeros((9, 12), bool)
        pixels[2:5, 3:7] = np.eye(3, 4, dtype=bool)
        mask = ObjectMask.of(pixels, 10, 20)
        assert (mask.top, mask.left, mask.shape, mask.area) == (12, 23, (3, 3), 3)
        other = ObjectMask.of(np.ones((2, 2), bool), 11, 30)
        union = mask.union([other])
        assert union.area == 7
        assert union.box.tolist() == [23, 11, 32, 15]
        assert ObjectMask.of(np.zeros((3, 3), bool)).area == 0


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"merging": "mean"}, "merging='mean' is unknown. Choose from 'match', 'nms', 'greedy'"),
            ({"merge_threshold": 0}, "merge_threshold=0"),
            ({"threshold": 2}, "threshold=2"),
            ({"border": -1}, "border=-1"),
            ({"journal": "nowhere/tiles.jsonl"}, "there is no folder 'nowhere'"),
            ({"tile": 0}, "tile=0"),
            ({"journal": __file__}, "is a file of another kind"),
        ],
    )
    def test_arguments(self, arguments, message):
        model = KnowingDetector(40, [[1, 1, 2, 2]], [0])
        model.forward = None
        with pytest.raises(ValueError, match=message):
            detect_tiled(model, places(40, 40), KNOWING, **arguments)

    def test_model_of_another_kind(self):
        model, processor = segformer()
        with pytest.raises(TypeError, match=r"gives no pred_boxes|gives boxes.*segment_tiled"):
            detect_tiled(model, picture(64, 64), processor)

    def test_model_without_names(self):
        model = KnowingDetector(40, [[1, 1, 9, 9]], [0])
        model.config.id2label = None
        result = detect_tiled(model, places(40, 40), KNOWING)
        assert [result.name_of(label) for label in result.labels.tolist()] == ["0"]


def test_scores_that_are_not_finite_are_no_empty_result():
    class Overflowing(KnowingDetector):
        def forward(self, pixel_values):
            outputs = super().forward(pixel_values)
            outputs.logits = torch.full((len(pixel_values), 1, 2), torch.nan)
            return outputs

    model = Overflowing(40, [[1, 1, 9, 9]], [0])
    with pytest.raises(ValueError, match="logits are not finite"):
        detect_tiled(model, places(40, 40), KNOWING, tile=20)
