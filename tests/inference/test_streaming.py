"""Patches of an image that is read a band at a time: the same choice and the same answer as of the whole
image."""

import itertools

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.models import tiny_config, tiny_swin_config
from tests.helpers.streaming import PROCESSOR, classifier, narrow_bands, picture  # noqa: F401  (for every test)
from vit_hf import (
    PATCH_SELECTORS,
    AdaptiveSwinForImageClassification,
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
    AdaptiveViTModel,
    predict_streaming,
    select_streaming,
    stream_images,
)
from vit_hf.inference import streamed_patches
from vit_hf.inference.streamed_patches import RowWeights
from vit_hf.readers.opening import ArraySource


every_selector = pytest.mark.parametrize("name", PATCH_SELECTORS)


@torch.no_grad()
def in_memory(model, image):
    return model(**PROCESSOR(image, return_tensors="pt"))


@every_selector
@pytest.mark.parametrize("context", [False, True])
def test_equals_the_whole_image(name, context):
    model, image = classifier(name, thumbnail_context=context), picture(150, 203)
    whole, streamed = in_memory(model, image), predict_streaming(model, image, image_processor=PROCESSOR)
    assert torch.equal(streamed.selected_patches, whole.selected_patches)
    torch.testing.assert_close(streamed.logits, whole.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        streamed.patch_scores, whole.patch_scores.gather(1, whole.selected_patches), atol=1e-4, rtol=1e-4
    )


@settings(deadline=None, max_examples=12)
@given(
    height=st.integers(8, 90),
    width=st.integers(8, 90),
    kept=st.one_of(st.integers(1, 60), st.floats(0.05, 1)),
    band=st.sampled_from([1, 700, 2000, 10**6]),
    flat=st.booleans(),
)
def test_equals_it_whatever_the_bands(height, width, kept, band, flat):
    image = np.full((height, width, 3), 90, np.uint8) if flat else picture(height, width)
    patches = (height // 8) * (width // 8)
    kept = min(kept, patches) if isinstance(kept, int) else kept
    model = classifier("variance", num_selected_patches=kept)
    before, streamed_patches.BAND_PIXELS = streamed_patches.BAND_PIXELS, band
    try:
        streamed = predict_streaming(model, image, image_processor=PROCESSOR)
    finally:
        streamed_patches.BAND_PIXELS = before
    whole = in_memory(model, image)
    assert torch.equal(streamed.selected_patches, whole.selected_patches)
    torch.testing.assert_close(streamed.logits, whole.logits)


@settings(deadline=None, max_examples=50)
@given(old=st.integers(1, 400), new=st.integers(1, 90), cuts=st.lists(st.integers(1, 399), max_size=4))
def test_weights_are_those_of_torch(old, new, cuts):
    image = torch.randn(old, 3)  # torch errs with images one pixel wide
    expected = torch.nn.functional.interpolate(image[None, None], (new, 3), mode="bilinear", antialias=True)
    weights, result = RowWeights(old, new), torch.zeros(new, 3)
    edges = sorted({0, old, *(cut for cut in cuts if cut < old)})
    for top, bottom in itertools.pairwise(edges):
        first, last, share = weights.for_band(top, bottom)
        result[first:last] += share @ image[top:bottom]
    torch.testing.assert_close(result, expected[0, 0], atol=5e-5, rtol=1e-5)


def test_number_of_patches_may_be_another():
    model, image = classifier("saliency"), picture(64, 64)
    assert predict_streaming(model, image, 3, PROCESSOR).selected_patches.shape == (1, 3)
    assert predict_streaming(model, image, 0.5, PROCESSOR).selected_patches.shape == (1, 32)


def test_thumbnails_of_the_source():
    """Nothing but the thumbnail and the kept patches is read."""

    class Counting(ArraySource):
        pixels_read = 0

        def _read(self, top, left, height, width):
            self.pixels_read += height * width
            return super()._read(top, left, height, width)

    source = Counting(picture(400, 400), "a picture")
    chosen = predict_streaming(
        classifier("attention"), source, 6, PROCESSOR, thumbnails="source"
    ).selected_patches
    assert source.pixels_read == 6 * 64
    exact = predict_streaming(classifier("attention"), source, 6, PROCESSOR).selected_patches
    assert source.pixels_read == 2 * 6 * 64 + 400 * 400
    assert len(set(chosen[0].tolist()) & set(exact[0].tolist())) >= 4


def test_files_and_images(tmp_path):
    PIL.Image.fromarray(picture(80, 72)).save(tmp_path / "large.png")
    model = classifier("entropy")
    expected = predict_streaming(model, picture(80, 72), image_processor=PROCESSOR).logits
    for source in (tmp_path / "large.png", str(tmp_path / "large.png"), PIL.Image.fromarray(picture(80, 72))):
        assert torch.equal(predict_streaming(model, source, image_processor=PROCESSOR).logits, expected)


def test_what_it_opened_it_closes(monkeypatch):
    """And nothing that the caller opened, who may read on."""
    closed = []
    monkeypatch.setattr(ArraySource, "close", lambda self: closed.append(self))
    model, image = classifier("saliency", thumbnail_context=True), picture(64, 64)
    predict_streaming(model, image, image_processor=PROCESSOR)
    select_streaming(model, image, image_processor=PROCESSOR)
    assert len(closed) == 2
    predict_streaming(model, ArraySource(image, "mine"), image_processor=PROCESSOR)
    assert len(closed) == 2


def test_chance_plays_no_part_in_predicting():
    """Dropout of the probe neither, though the model is being trained."""
    model, image = classifier("attention", hidden_dropout_prob=0.5).train(), picture(150, 203)
    outputs = [predict_streaming(model, image, image_processor=PROCESSOR) for _ in range(2)]
    assert torch.equal(outputs[0].selected_patches, outputs[1].selected_patches) and model.training


def test_processor_of_the_checkpoint(tmp_path):
    model, image = classifier("variance"), picture(64, 64)
    mean = AdaptiveViTImageProcessor(
        patch_size=8, image_mean=[0.1, 0.2, 0.3], size={"height": 32, "width": 32}
    )
    model.save_pretrained(tmp_path)
    mean.save_pretrained(tmp_path)
    loaded = AdaptiveViTForImageClassification.from_pretrained(tmp_path)
    expected = predict_streaming(model, image, image_processor=mean).logits
    torch.testing.assert_close(predict_streaming(loaded, image).logits, expected)
    assert not torch.isclose(predict_streaming(model, image).logits, expected, atol=1e-3).all()


def test_training_on_what_was_kept():
    model, image = classifier("variance").train(), picture(150, 203)
    selection = select_streaming(model, image, image_processor=PROCESSOR)
    assert model.training
    outputs = model(**selection.inputs, labels=torch.tensor([1]))
    outputs.loss.backward()
    gradient = model.vit.embeddings.patch_embeddings.projection.weight.grad
    model.zero_grad()
    model(**PROCESSOR(image, return_tensors="pt"), labels=torch.tensor([1])).loss.backward()
    torch.testing.assert_close(gradient, model.vit.embeddings.patch_embeddings.projection.weight.grad)


def test_base_model_and_training_flag():
    model = AdaptiveViTModel(tiny_config(patch_selector="gradient")).train()
    model.layers[0].eval()  # frozen, say
    assert predict_streaming(model, picture(64, 64)).last_hidden_state.shape == (1, 7, 32)
    assert model.training and model.layers[1].training and not model.layers[0].training


class TestErrors:
    def test_a_swin(self, tmp_path):
        model = AdaptiveSwinForImageClassification(tiny_swin_config())
        with pytest.raises(TypeError, match="AdaptiveSwinForImageClassification: use predict_tiled"):
            stream_images(model, [tmp_path / "slide.tif"])

    def test_no_selector(self):
        with pytest.raises(ValueError, match="patch_selector=None"):
            predict_streaming(AdaptiveViTForImageClassification(tiny_config()), picture(64, 64))

    def test_more_patches_than_there_are(self):
        with pytest.raises(ValueError, match=r"num_selected_patches=65 does not fit an image of 64 patches"):
            predict_streaming(classifier("variance"), picture(64, 64), 65)

    def test_smaller_than_a_patch(self):
        with pytest.raises(ValueError, match=r"4x64 pixels and is smaller than one patch of 8x8"):
            predict_streaming(classifier("variance"), PIL.Image.fromarray(picture(4, 64)), 1)

    def test_unknown_thumbnails(self):
        with pytest.raises(ValueError, match=r"thumbnails='some' is unknown. Choose 'exact' or 'source'"):
            predict_streaming(classifier("attention"), picture(64, 64), thumbnails="some")

    def test_hybrid(self):
        from transformers import ResNetConfig

        cnn = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        with pytest.raises(ValueError, match="reads whole images"):
            predict_streaming(classifier("variance", backbone_config=cnn), picture(64, 64))
