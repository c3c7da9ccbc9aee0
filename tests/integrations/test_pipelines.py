"""transformers' pipelines give what the model gives."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from tests.helpers.models import SELECTIONS, every_selection, tiny_config
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor, AdaptiveViTModel


NAMES = ["ant", "bee", "cat", "dog", "eel"]

CUT = {"return_patches": True, "patch_size": 8, "patch_selector": "variance", "num_selected_patches": 7}


def photos(*sizes: tuple[int, int]) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def saved(path, model, **processing):
    model.save_pretrained(path)
    processor = AdaptiveViTImageProcessor(**{"size": {"height": 64, "width": 64}, **processing})
    processor.save_pretrained(path)
    return str(path), processor


@every_selection
def test_image_classification(selection, tmp_path):
    config = tiny_config(**selection, id2label=dict(enumerate(NAMES)))
    model = AdaptiveViTForImageClassification(config).eval()
    path, processor = saved(tmp_path, model)
    images = photos((70, 90), (64, 64), (40, 100))
    classify = pipeline("image-classification", model=path, top_k=5, device="cpu")
    with torch.no_grad():
        expected = model(**processor(images, return_tensors="pt")).logits.softmax(dim=-1)
    for answers in (classify(images), classify(images, batch_size=3)):
        for answer, probabilities in zip(answers, expected, strict=True):
            found = {entry["label"]: entry["score"] for entry in answer}
            wanted = dict(zip(NAMES, probabilities.tolist(), strict=True))
            assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("processing", [{}, CUT], ids=["whole images", "kept patches"])
def test_images_as_they_are(processing, tmp_path):
    """Of any size, and with the patches that the image processor kept."""
    model = AdaptiveViTForImageClassification(tiny_config()).eval()
    path, processor = saved(tmp_path, model, do_resize=False, **processing)
    images = photos((70, 90), (40, 100))
    answers = pipeline("image-classification", model=path, device="cpu")(images)
    for answer, image in zip(answers, images, strict=True):
        with torch.no_grad():
            expected = model(**processor([image], return_tensors="pt")).logits.softmax(dim=-1)
        assert answer[0]["score"] == pytest.approx(expected.max().item(), abs=1e-5)


@pytest.mark.parametrize("selection", [SELECTIONS[name] for name in ("dense", "variance", "both_merge")])
def test_image_feature_extraction(selection, tmp_path):
    model = AdaptiveViTModel(tiny_config(**selection)).eval()
    path, processor = saved(tmp_path, model)
    images = photos((70, 90), (40, 100))
    with torch.no_grad():
        expected = model(**processor(images, return_tensors="pt"))
    extract = pipeline("image-feature-extraction", model=path, device="cpu")
    for options, values in (
        ({}, expected.last_hidden_state),
        ({"pool": True}, expected.pooler_output),
        ({"batch_size": 2}, expected.last_hidden_state),
    ):
        features = extract(images, **options)
        for got, wanted in zip(features, values, strict=True):
            torch.testing.assert_close(torch.as_tensor(got)[0], wanted, atol=1e-5, rtol=1e-4)
