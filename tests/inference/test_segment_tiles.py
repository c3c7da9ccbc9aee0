"""Class masks of images of any size."""

import tracemalloc

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.classifiers import picture, vit
from tests.helpers.dense import (
    PLAIN,
    detr,
    eomt,
    mask2former,
    ours,
    ours_native,
    pixel_segmenter,
    segformer,
)
from vit_hf import segment_tiled
from vit_hf.inference import segment_tiles


def whole(model, image: np.ndarray) -> torch.Tensor:
    """Logits `(H, W, L)` of an image at once."""
    with torch.inference_mode():
        values = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        return model(values).logits[0].permute(1, 2, 0)


class TestBlending:
    @given(
        size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
        tile=st.tuples(st.integers(8, 40), st.integers(8, 40)),
        overlap=st.floats(0, 0.8),
        halo=st.integers(0, 3),
        batch_size=st.integers(1, 5),
    )
    @settings(max_examples=40, deadline=None)
    def test_pixelwise_model_equals_whole(self, size, tile, overlap, halo, batch_size):
        torch.manual_seed(0)
        model, image = pixel_segmenter(), picture(*size)
        result = segment_tiled(
            model,
            PIL.Image.fromarray(image),  # an array of few pixels may be taken for channels first
            PLAIN,
            tile=tile,
            overlap=overlap,
            halo=halo,
            batch_size=batch_size,
            keep_logits=True,
        )
        expected = whole(model, image)
        assert np.array_equal(result.logits, expected.numpy())
        assert np.array_equal(result.mask, expected.argmax(-1).numpy())
        assert result.counts.sum() == size[0] * size[1]

    @pytest.mark.parametrize("overlap", [0.0, 0.3])
    @pytest.mark.parametrize("radius", [1, 3])
    def test_halo_of_receptive_field_equals_whole(self, radius, overlap):
        model, image = pixel_segmenter(radius=radius), picture(70, 90)
        result = segment_tiled(model, image, PLAIN, tile=24, overlap=overlap, halo=radius, keep_logits=True)
        expected = whole(model, image).numpy()
        assert np.abs(result.logits - expected).max() < 1e-5
        without = segment_tiled(model, image, PLAIN, tile=24, overlap=overlap, keep_logits=True)
        assert np.abs(without.logits - expected).max() > 1e-2

    def test_scales_are_blended(self):
        model = pixel_segmenter()
        image = np.full((50, 70, 3), 90, np.uint8)
        one = segment_tiled(model, image, PLAIN, tile=20, keep_logits=True)
        three = segment_tiled(model, image, PLAIN, tile=20, scales=(1, 0.5, 2), keep_logits=True)
        assert three.num_tiles > one.num_tiles
        np.testing.assert_allclose(three.logits, one.logits, atol=1e-5)

    def test_scale_sees_more_of_the_image(self):
        model = pixel_segmenter()
        image = picture(40, 40)
        image[10:30, 10:30] = 255
        half = segment_tiled(model, image, PLAIN, tile=20, scales=(0.5,), keep_logits=True)
        assert half.num_tiles == 1
        np.testing.assert_allclose(half.logits[15:25, 15:25], whole(model, image)[15:25, 15:25], atol=1e-5)

    def test_band_in_a_file(self, monkeypatch):
        model, image = pixel_segmenter(), picture(50, 40)
        expected = segment_tiled(model, image, PLAIN, tile=16).mask
        monkeypatch.setattr(segment_tiles, "MAX_BAND_BYTES", 0)
        assert np.array_equal(segment_tiled(model, image, PLAIN, tile=16).mask, expected)

    @pytest.mark.parametrize(
        "build",
        [
            segformer,
            mask2former,
            eomt,
            ours,
            ours_native,
            lambda: ours(patch_selector="variance", num_selected_patches=0.5),
            lambda: ours(token_reducer="merge", keep_rate=0.6, reduction_layers=[0, 1]),
        ],
        ids=["segformer", "mask2former", "eomt", "ours", "ours_native", "ours_selecting", "ours_reducing"],
    )
    def test_models(self, build):
        model, processor = build()
        image = picture(70, 101)
        result = segment_tiled(model, image, processor, batch_size=3, keep_logits=True, tile=48)
        assert result.mask.shape == (70, 101)
        assert np.isfinite(result.logits).all()
        assert result.mask.max() < 4
        tiny = segment_tiled(model, image[:5, :9], processor)
        assert tiny.mask.shape == (5, 9)

    def test_one_tile_equals_the_model(self):
        model, processor = segformer()
        image = picture(64, 64)
        with torch.inference_mode():
            outputs = model(**processor(image, return_tensors="pt"))
        (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 64)])
        assert np.array_equal(segment_tiled(model, image, processor).mask, expected.numpy())

    @pytest.mark.parametrize("build", [mask2former, eomt], ids=["mask2former", "eomt"])
    def test_universal_models_sum_masks_by_class(self, build):
        model, processor = build()
        image = picture(64, 64)
        inputs = processor(image, return_tensors="pt")
        with torch.inference_mode():
            outputs = model(pixel_values=inputs["pixel_values"])
        classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
        expected = torch.einsum("bql,bqhw->blhw", classes, outputs.masks_queries_logits.sigmoid())
        expected = torch.nn.functional.interpolate(expected, (64, 64), mode="bilinear")[0].permute(1, 2, 0)
        result = segment_tiled(model, image, processor, keep_logits=True)
        np.testing.assert_allclose(result.logits, expected, atol=1e-4)

    def test_one_class_is_a_yes_or_a_no(self):
        model, image = pixel_segmenter(num_labels=1), picture(20, 30)
        result = segment_tiled(model, image, PLAIN, tile=16, keep_logits=True)
        assert np.array_equal(result.mask, result.logits[..., 0] > 0)
        assert result.background == 0
        assert set(result.fractions) <= {"not LABEL_0", "LABEL_0"}

    def test_training_mode_is_restored(self):
        model = pixel_segmenter().train()
        segment_tiled(model, picture(20, 20), PLAIN, tile=16)
        assert model.training


class TestSelection:
    def test_mask_of_another_size_says_which_tiles_matter(self):
        model = pixel_segmenter()
        image = picture(64, 96)
        marked = np.zeros((4, 6), bool)  # a cell is 16 pixels
        marked[2, 4] = True
        result = segment_tiled(model, image, PLAIN, tile=16, overlap=0, tile_selector=marked)
        assert (result.num_tiles, result.num_computed) == (24, 1)
        assert result.skipped_fraction == pytest.approx(23 / 24)
        expected = np.full((64, 96), 255)
        expected[32:48, 64:80] = whole(model, image).argmax(-1)[32:48, 64:80]
        assert np.array_equal(result.mask, expected)
        assert result.fractions["no class"] == pytest.approx(23 / 24)

    @pytest.mark.parametrize("selector", ["variance", "gradient", "entropy", lambda image: image.std(axis=2)])
    def test_scorers_find_what_stands_out(self, selector):
        image = np.full((128, 128, 3), 100, np.uint8)
        image[40:56, 72:88] = picture(16, 16)
        result = segment_tiled(
            pixel_segmenter(), image, PLAIN, tile=32, overlap=0, tile_selector=selector, num_selected_tiles=1
        )
        rows, columns = np.nonzero(result.mask != 255)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (32, 63, 64, 95)

    def test_number_fraction_and_least_score(self):
        scores = np.arange(16.0).reshape(4, 4)
        common = {"tile": 8, "overlap": 0, "tile_selector": scores}
        model, image = pixel_segmenter(), picture(32, 32)
        assert segment_tiled(model, image, PLAIN, num_selected_tiles=3, **common).num_computed == 3
        assert segment_tiled(model, image, PLAIN, num_selected_tiles=0.25, **common).num_computed == 4
        assert segment_tiled(model, image, PLAIN, min_tile_score=10, **common).num_computed == 6

    def test_background_is_the_class_of_that_name(self):
        names = {0: "tree", 1: "Background"}
        model = pixel_segmenter(num_labels=2, id2label=names)
        result = segment_tiled(model, picture(20, 20), PLAIN, tile=16, tile_selector=np.zeros((2, 2)))
        assert result.num_computed == 0
        assert result.background == 1
        assert result.fractions == {"Background": 1.0}

    def test_no_data_are_background(self):
        model, image = pixel_segmenter(), picture(48, 32)
        image[image == 7] = 8
        image[:32] = 7
        image[40, 3] = 7
        result = segment_tiled(model, image, PLAIN, tile=16, overlap=0, nodata=7)
        assert (result.num_tiles, result.num_computed) == (6, 2)
        assert ((result.mask == 255) == (image == 7).all(axis=2)).all()

    def test_nothing_but_no_data(self):
        result = segment_tiled(pixel_segmenter(), np.zeros((20, 20, 3), np.uint8), PLAIN, tile=8, nodata=0)
        assert result.num_computed == 0
        assert (result.mask == 255).all()


class TestFiles:
    @pytest.mark.parametrize("suffix", [".npy", ".zarr", ".tif"])
    def test_formats(self, tmp_path, suffix):
        model, image = pixel_segmenter(), picture(300, 530)
        expected = segment_tiled(model, image, PLAIN, tile=128, keep_logits=True)
        result = segment_tiled(
            model,
            image,
            PLAIN,
            tile=128,
            output=tmp_path / f"mask{suffix}",
            logits_output=tmp_path / f"logits{suffix}",
        )
        assert np.array_equal(result.mask, expected.mask)
        assert np.array_equal(result.logits, expected.logits)
        assert np.array_equal(np.concatenate([band for _, band in result.bands()]), expected.mask)
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"logits{suffix}", f"mask{suffix}"]
        # An existing file is replaced.
        again = segment_tiled(model, image[:20, :30], PLAIN, tile=128, output=tmp_path / f"mask{suffix}")
        assert again.mask.shape == (20, 30)

    def test_tiff_has_colors(self, tmp_path):
        segment_tiled(pixel_segmenter(), picture(40, 40), PLAIN, tile=32, output=tmp_path / "mask.tif")
        with tifffile.TiffFile(tmp_path / "mask.tif") as file:
            page = file.pages[0]
            assert page.is_tiled
            assert page.photometric.name == "PALETTE"
            assert len(np.unique(page.colormap.T, axis=0)) > 200
            assert page.tags.valueof(42113) == "255"

    def test_many_classes(self, tmp_path):
        model, image = pixel_segmenter(num_labels=300), picture(20, 20)
        result = segment_tiled(model, image, PLAIN, tile=16, output=tmp_path / "mask.tif")
        assert result.mask.dtype == np.uint16
        assert np.array_equal(result.mask, whole(model, image).argmax(-1))

    @pytest.mark.parametrize("overlap", [0.0, 0.4])
    @pytest.mark.parametrize("stop", [1, 4, 7])
    def test_interrupted_run_goes_on(self, tmp_path, monkeypatch, overlap, stop):
        model, image, path = pixel_segmenter(radius=1), picture(90, 40), tmp_path / "mask.tif"
        common = {"tile": 24, "overlap": overlap, "batch_size": 1}
        expected = segment_tiled(model, image, PLAIN, **common)
        forward, calls = model.forward, []

        def interrupted(pixel_values):
            calls.append(1)
            if len(calls) > stop:
                raise KeyboardInterrupt
            return forward(pixel_values)

        monkeypatch.setattr(model, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            segment_tiled(model, image, PLAIN, output=path, **common)
        assert not path.exists()
        calls.clear()
        stop = 10**6
        result = segment_tiled(model, image, PLAIN, output=path, **common)
        assert np.array_equal(result.mask, expected.mask)
        assert np.array_equal(result.counts, expected.counts)
        assert result.num_computed == result.num_tiles
        if len(calls) < result.num_tiles:
            assert [path.name for path in tmp_path.iterdir()] == ["mask.tif"]

    def test_interrupted_run_of_another_image_begins_anew(self, tmp_path, monkeypatch):
        model, path = pixel_segmenter(), tmp_path / "mask.npy"
        common = {"tile": 16, "overlap": 0, "batch_size": 1}
        forward, calls = model.forward, []

        def interrupted(pixel_values):
            calls.append(1)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return forward(pixel_values)

        monkeypatch.setattr(model, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            segment_tiled(model, picture(48, 32), PLAIN, output=path, **common)
        image = picture(48, 32)[::-1]
        result = segment_tiled(model, image, PLAIN, output=path, **common)
        assert np.array_equal(result.mask, whole(model, image.copy()).argmax(-1))

    def test_interrupted_conversion_leaves_no_file(self, tmp_path, monkeypatch):
        model, image, path = pixel_segmenter(), picture(40, 40), tmp_path / "mask.tif"
        path.write_bytes(b"what was there")

        def interrupted(*args, **options):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(tifffile.TiffWriter, "write", interrupted)
            segment_tiled(model, image, PLAIN, tile=16, output=path)
        assert path.read_bytes() == b"what was there"
        monkeypatch.setattr(model, "forward", None)  # all rows are there
        result = segment_tiled(model, image, PLAIN, tile=16, output=path)
        assert np.array_equal(result.mask, whole(pixel_segmenter_like(model), image).argmax(-1))

    def test_memory_does_not_grow_with_height(self, tmp_path):
        model = pixel_segmenter(num_labels=2)
        peaks = []
        for height in (1024, 1024, 12_288):  # the first one imports and caches what is needed once
            np.save(tmp_path / "image.npy", np.zeros((height, 128, 3), np.uint8))
            tracemalloc.start()
            segment_tiled(
                model, tmp_path / "image.npy", PLAIN, tile=128, output=tmp_path / "mask.npy", batch_size=2
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        # The larger mask has 1.4 million pixels more, the image three times as many bytes.
        assert peaks[2] < peaks[1] + 300_000


def pixel_segmenter_like(model):
    fresh = pixel_segmenter(model.config.num_labels)
    fresh.load_state_dict(model.state_dict())
    return fresh


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"tile": 0}, "tile=0"),
            ({"overlap": 1.0}, r"overlap=1\.0"),
            ({"halo": -1}, "halo=-1 must be a whole number of pixels"),
            ({"halo": 8, "tile": 16}, "halo=8 leaves nothing of a tile of 16x16"),
            ({"scales": ()}, r"scales=\(\) must be"),
            ({"scales": (1, 0)}, r"scales=\(1, 0\)"),
            ({"scales": (1, 1)}, r"scales=\(1, 1\)"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"output": "mask.gif"}, r"output='mask.gif' must end in one of \.npy"),
            ({"output": "nowhere/mask.npy"}, "there is no folder 'nowhere'"),
            ({"tile_selector": "attention"}, "tile_selector='attention' is unknown. Choose from 'variance'"),
            ({"tile_selector": "variance"}, "needs num_selected_tiles or min_tile_score"),
            ({"tile_selector": "variance", "num_selected_tiles": 1.5}, "num_selected_tiles=1.5"),
            ({"num_selected_tiles": 3}, "go with a tile_selector"),
            ({"nodata": 300}, "nodata=300"),
            ({"background": 999}, "background=999"),
            ({"tile_selector": np.zeros(3)}, r"shape \(3,\)"),
            ({"tile_selector": np.full((2, 2), np.nan)}, "NaN"),
        ],
    )
    def test_arguments(self, arguments, message):
        model = pixel_segmenter()
        model.forward = None  # errors come before any tile
        with pytest.raises(ValueError, match=message):
            segment_tiled(model, picture(40, 40), PLAIN, **arguments)

    def test_model_of_another_kind(self):
        with pytest.raises(TypeError, match=r"logits of shape .* AutoModelForSemanticSegmentation"):
            segment_tiled(vit(), picture(32, 32), PLAIN, tile=32)
        model, processor = detr()
        with pytest.raises(TypeError, match="detect_tiled"):
            segment_tiled(model, picture(64, 64), processor)

    def test_model_that_needs_text(self):
        model = pixel_segmenter()
        model.config.model_type = "oneformer"
        with pytest.raises(TypeError, match="takes a task as text with each image"):
            segment_tiled(model, picture(20, 20), PLAIN)

    def test_logits_that_are_not_finite(self):
        model = pixel_segmenter()
        torch.nn.init.constant_(model.weight, torch.nan)
        with pytest.raises(ValueError, match="not finite"):
            segment_tiled(model, picture(20, 20), PLAIN)

    def test_model_without_names(self):
        model = pixel_segmenter(num_labels=2)
        model.config.id2label = None
        result = segment_tiled(model, picture(20, 20), PLAIN)
        assert set(result.fractions) <= {"0", "1"}
