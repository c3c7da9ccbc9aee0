"""`predict_tiled` on whatever classifier and whatever image."""

import dataclasses
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    BitConfig,
    BitForImageClassification,
    BitImageProcessor,
    ConvNextImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from tests.helpers.classifiers import PROCESSOR, SIZE, TINY_VIT, convnext, ours, picture, resnet, swin, vit
from tests.helpers.models import SELECTIONS
from vit_hf import AdaptiveViTImageProcessor, predict_tiled
from vit_hf.inference.aggregation import TILE_AGGREGATIONS
from vit_hf.inference.tile_grid import TileGrid
from vit_hf.readers.opening import ImageSource


MODELS = {
    "vit": (vit, PROCESSOR),
    "swin": (swin, PROCESSOR),
    "resnet": (resnet, ConvNextImageProcessor(size={"shortest_edge": 32})),
    "convnext": (convnext, ConvNextImageProcessor(size={"shortest_edge": 384})),
    "ours": (lambda: ours(patch_selector="variance"), AdaptiveViTImageProcessor(size=SIZE)),
    "ours by attention": (lambda: ours(patch_selector="attention"), AdaptiveViTImageProcessor(size=SIZE)),
    "ours, cut": (
        lambda: ours(),
        AdaptiveViTImageProcessor(
            size=SIZE, return_patches=True, patch_size=8, patch_selector="variance", num_selected_patches=6
        ),
    ),
    "ours, as it is": (lambda: ours(), AdaptiveViTImageProcessor(do_resize=False)),
}
every_model = pytest.mark.parametrize("name", MODELS)


def logits_of(model, processor, tiles: list[np.ndarray]) -> torch.Tensor:
    """One by one, as a user would."""
    with torch.no_grad():
        return torch.cat(
            [
                model(**processor(images=PIL.Image.fromarray(tile), return_tensors="pt")).logits
                for tile in tiles
            ]
        )


class TestLikeALoop:
    @every_model
    def test_every_model(self, name):
        make, processor = MODELS[name]
        model, image = make(), picture(100, 70)
        result = predict_tiled(model, image, tile=40, overlap=0.25, image_processor=processor)
        places = [(top, left) for top in (0, 30, 60) for left in (0, 30)]
        tiles = [image[top : top + 40, left : left + 40] for top, left in places]
        assert result.tile_coordinates.tolist() == [[*place, 40, 40] for place in places]
        if name == "resnet":
            # The processor's own answer is of a crop: what is expected is the tile, resized by Pillow, whole.
            tiles = [
                np.asarray(PIL.Image.fromarray(tile).resize((32, 32), PIL.Image.BICUBIC)) for tile in tiles
            ]
            processor = ConvNextImageProcessor(do_resize=False)
        expected = logits_of(model, processor, tiles)
        torch.testing.assert_close(result.tile_logits, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(result.logits, expected.mean(dim=0), rtol=1e-4, atol=1e-5)
        assert result.label == model.config.id2label[int(expected.mean(dim=0).argmax())]
        # Else all of this would say little.
        assert result.tile_logits.std(dim=0).max() > 1e-3

    @pytest.mark.parametrize("selection", ["variance", "attention", "merge", "context"])
    def test_batch_size_makes_no_difference(self, selection):
        model, image = ours(**SELECTIONS[selection]), picture(90, 90)
        processor = AdaptiveViTImageProcessor(size=SIZE)
        one, three, all_at_once = (
            predict_tiled(
                model, image, tile=32, batch_size=size, image_processor=processor, feature_maps=True
            )
            for size in (1, 3, 100)
        )
        for other in (three, all_at_once):
            torch.testing.assert_close(other.tile_logits, one.tile_logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(other.feature_map, one.feature_map, rtol=1e-4, atol=1e-5)

    def test_a_model_of_grey_images(self):
        model = ours(num_channels=1)
        processor = AdaptiveViTImageProcessor(
            size=SIZE, do_convert_rgb=False, image_mean=[0.5], image_std=[0.5]
        )
        grey = PIL.Image.fromarray(picture(70, 40)).convert("L")
        expected = torch.cat(
            [
                model(**processor(grey.crop((0, top, 40, top + 40)), return_tensors="pt")).logits
                for top in (0, 30)
            ]
        )
        for image in (grey, picture(70, 40)):
            result = predict_tiled(model, image, tile=40, image_processor=processor)
            torch.testing.assert_close(result.tile_logits, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("aggregate", TILE_AGGREGATIONS)
    @pytest.mark.parametrize("size", [(32, 32), (20, 31), (40, 12)])
    def test_an_image_of_one_tile_is_a_plain_forward(self, size, aggregate):
        model, image = vit(), picture(*size)
        result = predict_tiled(model, image, tile=40, aggregate=aggregate, image_processor=PROCESSOR)
        expected = logits_of(model, PROCESSOR, [image])
        assert len(result.grid) == 1
        torch.testing.assert_close(result.tile_logits, expected, rtol=1e-5, atol=1e-6)
        assert result.label == model.config.id2label[int(expected.argmax())]
        if aggregate != "vote":
            torch.testing.assert_close(result.logits, expected[0], rtol=1e-5, atol=1e-6)

    def test_nothing_is_cropped(self):
        # Resizes to 64 and takes the middle 32: a border that is bright must be seen all the same.
        processor = BitImageProcessor(size={"shortest_edge": 64}, crop_size=SIZE)
        torch.manual_seed(3)
        model = BitForImageClassification(
            BitConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=4, num_labels=3)
        ).eval()
        image = picture(40, 40)
        framed = image.copy()
        framed[:4] = framed[-4:] = 255
        with torch.no_grad():
            cropped, cropped_framed = (logits_of(model, processor, [item]) for item in (image, framed))
        torch.testing.assert_close(cropped, cropped_framed)
        whole, whole_framed = (
            predict_tiled(model, item, tile=40, image_processor=processor).logits for item in (image, framed)
        )
        assert (whole - whole_framed).abs().max() > 1e-4
        assert processor.do_center_crop and processor.size.shortest_edge == 64


class RecordingSource(ImageSource):
    """Remembers what is read, and whether it was closed."""

    def __init__(self, image: np.ndarray):
        self.image, self.name = image, "a recording"
        self.height, self.width = image.shape[:2]
        self.regions, self.closed = [], False

    def _read(self, top, left, height, width):
        self.regions.append((top, left, height, width))
        return self.image[top : top + height, left : left + width]

    def thumbnail(self, height, width):
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


class TestReading:
    def test_row_by_row_and_no_further_than_the_batch(self):
        source, model = RecordingSource(picture(80, 100)), vit()
        batches = []
        model.register_forward_pre_hook(
            lambda module, args, kwargs: batches.append((len(kwargs["pixel_values"]), len(source.regions))),
            with_kwargs=True,
        )
        result = predict_tiled(model, source, tile=32, overlap=0, batch_size=5, image_processor=PROCESSOR)
        assert source.regions == [tuple(place) for place in result.tile_coordinates.tolist()]
        assert source.regions == sorted(source.regions)
        # When the model runs, only its own tiles have been read beyond those it has had.
        assert batches == [(5, 5), (5, 10), (2, 12)]
        assert not source.closed

    def test_files_are_closed(self, tmp_path, monkeypatch):
        image, path = picture(50, 60), tmp_path / "photo.png"
        PIL.Image.fromarray(image).save(path)
        opened = []
        monkeypatch.setattr(
            "vit_hf.inference.tiles.open_image",
            lambda source: opened.append(RecordingSource(np.asarray(PIL.Image.open(source)))) or opened[-1],
        )
        predict_tiled(vit(), path, tile=32, image_processor=PROCESSOR)
        assert [source.closed for source in opened] == [True]

    @pytest.mark.parametrize("kind", ["file", "grey", "rgba", "uint16", "pillow", "tensor"])
    def test_images_of_any_kind(self, kind, tmp_path):
        model, rgb = vit(), picture(50, 60)
        if kind == "grey":
            rgb = rgb[..., :1].repeat(3, axis=2)
        PIL.Image.fromarray(rgb).save(tmp_path / "photo.png")
        image = {
            "file": str(tmp_path / "photo.png"),
            "grey": rgb[..., 0],
            "rgba": np.concatenate((rgb, np.full_like(rgb[..., :1], 255)), axis=2),
            "uint16": rgb.astype(np.uint16) * 257,
            "pillow": PIL.Image.fromarray(rgb),
            "tensor": torch.from_numpy(rgb),
        }[kind]
        found = predict_tiled(model, image, tile=32, image_processor=PROCESSOR)
        expected = predict_tiled(model, rgb, tile=32, image_processor=PROCESSOR)
        torch.testing.assert_close(found.tile_logits, expected.tile_logits, rtol=0, atol=0)

    def test_sources_of_ones_own(self):
        class Stripes(ImageSource):
            name, height, width = "stripes", 40, 3200

            def _read(self, top, left, height, width):
                assert (top, height, width) == (0, 40, 64)
                return np.full((height, width, 3), left % 251, np.uint8)

            def thumbnail(self, height, width):
                raise NotImplementedError

        result = predict_tiled(vit(), Stripes(), tile=64, overlap=0, image_processor=PROCESSOR)
        assert len(result.grid) == 50 and len(result.tile_logits.unique(dim=0)) > 40


class TestModel:
    def test_left_as_it_was(self):
        model = vit().train()
        model.vit.layers[0].eval()
        before = {name: module.training for name, module in model.named_modules()}
        predict_tiled(model, picture(40, 40), tile=32, image_processor=PROCESSOR, feature_maps=True)
        assert {name: module.training for name, module in model.named_modules()} == before
        assert not any(module._forward_hooks for module in model.modules())

    def test_evaluates(self):
        model = vit(hidden_dropout_prob=0.5).train()
        first, second = (
            predict_tiled(model, picture(40, 40), tile=32, image_processor=PROCESSOR) for _ in range(2)
        )
        torch.testing.assert_close(first.logits, second.logits, rtol=0, atol=0)

    def test_left_as_it_was_after_an_error(self):
        model = ViTModel(ViTConfig(**TINY_VIT)).train()
        with pytest.raises(TypeError, match="no logits"):
            predict_tiled(model, picture(40, 40), image_processor=PROCESSOR)
        assert model.training

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_dtype(self, dtype):
        model, image = vit(), picture(60, 60)
        expected = predict_tiled(model, image, tile=32, image_processor=PROCESSOR, feature_maps=True)
        found = predict_tiled(model.to(dtype), image, tile=32, image_processor=PROCESSOR, feature_maps=True)
        assert found.tile_logits.dtype == found.logits.dtype == found.feature_map.dtype == torch.float32
        tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(found.tile_logits, expected.tile_logits, rtol=tolerance, atol=tolerance)

    @pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
    def test_device(self):
        model, image = vit(), picture(60, 60)
        expected = predict_tiled(model, image, tile=32, image_processor=PROCESSOR, feature_maps=True)
        model.to(torch.accelerator.current_accelerator())
        found = predict_tiled(model, image, tile=32, image_processor=PROCESSOR, feature_maps=True)
        torch.testing.assert_close(found.tile_logits, expected.tile_logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.feature_map, expected.feature_map, rtol=1e-3, atol=1e-3)

    def test_results_may_go_into_training(self):
        result = predict_tiled(vit(), picture(60, 60), tile=32, image_processor=PROCESSOR, feature_maps=True)
        head = torch.nn.Linear(16, 2)
        head(result.feature_map.flatten(1).T).sum().backward()
        torch.nn.Linear(3, 2)(result.tile_logits).sum().backward()
        assert head.weight.grad.abs().sum() > 0

    def test_image_processor_of_the_checkpoint(self, tmp_path):
        vit().save_pretrained(tmp_path)
        PROCESSOR.save_pretrained(tmp_path)
        model, image = ViTForImageClassification.from_pretrained(tmp_path).eval(), picture(60, 60)
        found = predict_tiled(model, image, tile=32)
        expected = predict_tiled(model, image, tile=32, image_processor=PROCESSOR)
        torch.testing.assert_close(found.logits, expected.logits)

    def test_progress(self, capfd, monkeypatch):
        # Scripts turn bars off for the whole process.
        monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)
        predict_tiled(vit(), picture(60, 60), tile=32, image_processor=PROCESSOR)
        assert "tile" not in capfd.readouterr().err
        predict_tiled(vit(), picture(60, 60), tile=32, image_processor=PROCESSOR, progress=True)
        assert "9/9" in capfd.readouterr().err
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        predict_tiled(vit(), picture(60, 60), tile=32, image_processor=PROCESSOR)
        assert "9/9" in capfd.readouterr().err
        predict_tiled(vit(), picture(60, 60), tile=32, image_processor=PROCESSOR, progress=False)
        assert "tile" not in capfd.readouterr().err


class TestProblems:
    image = picture(70, 70)

    def test_several_labels(self):
        model = vit(problem_type="multi_label_classification")
        result = predict_tiled(model, self.image, tile=32, image_processor=PROCESSOR)
        probabilities = 1 / (1 + np.exp(-result.tile_logits.mean(dim=0).numpy()))
        np.testing.assert_allclose(result.probabilities.numpy(), probabilities, rtol=1e-5)
        assert result.label == [f"LABEL_{index}" for index in range(3) if probabilities[index] >= 0.5]
        assert result.votes.tolist() == (result.tile_logits.numpy() > 0).sum(axis=0).tolist()
        assert 0 <= result.heat_map("LABEL_2").min() <= result.heat_map("LABEL_2").max() <= 1

    @pytest.mark.parametrize("fields", [{"num_labels": 1}, {"problem_type": "regression", "num_labels": 2}])
    def test_regression(self, fields):
        model = vit(**fields)
        result = predict_tiled(model, self.image, tile=32, aggregate="max", image_processor=PROCESSOR)
        assert result.label is result.probabilities is result.votes is None
        torch.testing.assert_close(result.logits, result.tile_logits.amax(dim=0))
        heat_map = result.heat_map(0)
        assert (
            result.tile_logits[:, 0].min()
            <= heat_map.min()
            < heat_map.max()
            <= result.tile_logits[:, 0].max()
        )
        for name in ("vote", "attention"):
            with pytest.raises(
                ValueError, match=f"aggregate='{name}' .*Choose from 'mean', 'max', 'topk-mean'"
            ):
                predict_tiled(model, self.image, tile=32, aggregate=name, image_processor=PROCESSOR)

    def test_again_by_another_aggregation(self):
        model = vit()
        result = predict_tiled(model, self.image, tile=32, image_processor=PROCESSOR)
        for name in TILE_AGGREGATIONS:
            expected = predict_tiled(
                model,
                self.image,
                tile=32,
                aggregate=name,
                num_top_tiles=2,
                attention_temperature=0.3,
                image_processor=PROCESSOR,
            )
            again = result.aggregate(name, num_top_tiles=2, attention_temperature=0.3)
            torch.testing.assert_close(again, expected.logits, rtol=0, atol=0)


def test_result_is_a_dataclass():
    result = predict_tiled(vit(), picture(40, 60), tile=32, image_processor=PROCESSOR)
    assert dataclasses.is_dataclass(result)
    assert result.feature_map is None
    assert result.grid == TileGrid.cover((40, 60), 32, 0.25)
