"""A class for each pixel: losses, selection, sizes, post-processing."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn import functional
from transformers import pipeline

from tests.helpers.models import every_selection, tiny_config
from vit_hf import (
    AdaptiveViTForImageClassification,
    AdaptiveViTForSemanticSegmentation,
    AdaptiveViTImageProcessor,
    AdaptiveViTImageProcessorPil,
)


DECODERS = {"linear": 1, "convolutional": 4}
every_decoder = pytest.mark.parametrize("decoder", DECODERS)
every_processor = pytest.mark.parametrize(
    "processor_class", [AdaptiveViTImageProcessor, AdaptiveViTImageProcessorPil]
)


def make(**fields) -> AdaptiveViTForSemanticSegmentation:
    return AdaptiveViTForSemanticSegmentation(tiny_config(**fields)).eval()


@every_decoder
@every_selection
def test_logits_cover_the_image_and_everything_learns(decoder, selection):
    model = make(segmentation_decoder=decoder, **selection).train()
    output = model(torch.randn(2, 3, 67, 48), labels=torch.randint(0, 5, (2, 67, 48)))
    assert output.logits.shape == (2, 5, 8 * DECODERS[decoder], 6 * DECODERS[decoder])
    output.loss.backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None]


@every_decoder
def test_the_loss_is_that_of_pixels_that_count(decoder):
    model = make(segmentation_decoder=decoder)
    images, labels = torch.randn(2, 3, 36, 40), torch.randint(0, 5, (2, 36, 40))
    labels[0, :20] = 255
    output = model(images, labels=labels)
    resized = functional.interpolate(output.logits, size=(32, 40), mode="bilinear", align_corners=False)
    expected = functional.cross_entropy(resized, labels[:, :32], ignore_index=255)
    torch.testing.assert_close(output.loss, expected)
    model = make(segmentation_decoder={"type": decoder, "ignore_index": 4})
    labels = torch.full_like(labels, 4)
    assert model(images, labels=labels).loss == 0


def test_one_class_is_a_yes_or_a_no():
    model = make(num_labels=1)
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 2, (2, 32, 32))
    labels[1, 5:9] = 255
    output = model(images, labels=labels)
    resized = functional.interpolate(output.logits, size=(32, 32), mode="bilinear", align_corners=False)[:, 0]
    counting = labels != 255
    expected = functional.binary_cross_entropy_with_logits(resized[counting], labels[counting].float())
    torch.testing.assert_close(output.loss, expected)


def test_kept_patches_have_their_last_state_and_others_their_embedding():
    model = make(patch_selector="variance")
    images = torch.randn(1, 3, 64, 64)
    output = model(images)
    states = model.vit(images).last_hidden_state[0, 1:]
    maps = model.decode_head.classifier(states.T[None, :, :, None])[0, ..., 0]  # (L, K)
    kept = output.selected_patches[0]
    torch.testing.assert_close(output.logits[0].flatten(1)[:, kept], maps, atol=1e-5, rtol=1e-5)
    assert output.patch_scores.shape == (1, 64)


def test_cut_patches_equal_images():
    model = make(patch_selector="variance", segmentation_decoder="convolutional")
    images = torch.randint(0, 255, (2, 3, 48, 40), dtype=torch.uint8)
    options = {"do_resize": False, "patch_size": 8}
    labels = torch.randint(0, 5, (2, 48, 40))
    whole = AdaptiveViTImageProcessor(**options)(list(images), return_tensors="pt")
    cut = AdaptiveViTImageProcessor(
        **options, return_patches=True, patch_selector="variance", num_selected_patches=6
    )(list(images), return_tensors="pt")
    with torch.no_grad():
        expected, got = model(**whole, labels=labels), model(**cut, labels=labels)
    assert torch.equal(expected.selected_patches, got.selected_patches)
    # What the data loader dropped has no embedding, so only the linear answer at kept patches would be equal.
    assert got.logits.shape == expected.logits.shape and torch.isfinite(got.loss)


def test_overfits_a_mask():
    model = make(segmentation_decoder="convolutional", num_labels=2, initializer_range=0.05).train()
    images = 0.1 * torch.randn(2, 3, 32, 32)
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    images[0, :, 5:19, 9:30] += 2
    labels[0, 5:19, 9:30] = 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        output = model(images, labels=labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    processor = AdaptiveViTImageProcessor(patch_size=8, do_resize=False)
    answer = torch.stack(processor.post_process_semantic_segmentation(output, [(32, 32)] * 2))
    union = ((answer == 1) | (labels == 1)).sum()
    assert ((answer == 1) & (labels == 1)).sum() / union > 0.8


@pytest.mark.filterwarnings("ignore:.*newly initialized")
def test_a_classifier_becomes_a_segmenter(tmp_path):
    AdaptiveViTForImageClassification(tiny_config()).save_pretrained(tmp_path)
    _, info = AdaptiveViTForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.partition(".")[0] for name in info["missing_keys"]} == {"decode_head"}
    assert info["unexpected_keys"] == {"classifier.weight", "classifier.bias"}


class TestPostProcessing:
    @every_processor
    def test_as_transformers(self, processor_class):
        from transformers import SegformerImageProcessor

        outputs = SimpleNamespace(logits=torch.randn(2, 5, 8, 6))
        processor, theirs = processor_class(), SegformerImageProcessor()
        for sizes in (None, [(40, 33), (17, 64)], torch.tensor([[40, 33], [17, 64]])):
            got = processor.post_process_semantic_segmentation(outputs, sizes)
            sizes = sizes.tolist() if torch.is_tensor(sizes) else sizes
            expected = theirs.post_process_semantic_segmentation(outputs, sizes)
            for ours, other in zip(got, expected, strict=True):
                assert torch.equal(ours, other)
        (scored, _) = processor.post_process_semantic_segmentation(
            outputs, [(40, 33)] * 2, return_segmentation_scores=True
        )
        assert scored.segmentation_scores.shape == (5, 40, 33)
        assert torch.equal(scored.segmentation, scored.segmentation_scores.argmax(0))

    def test_what_patches_do_not_cover_has_the_class_beside_it(self):
        processor = AdaptiveViTImageProcessor(patch_size=8, do_resize=False)
        outputs = SimpleNamespace(logits=torch.randn(1, 3, 4, 4))
        (inner,) = processor.post_process_semantic_segmentation(outputs, [(32, 32)])
        (larger,) = processor.post_process_semantic_segmentation(outputs, [(37, 34)])
        assert torch.equal(larger[:32, :32], inner) and torch.equal(larger[36, :32], inner[31])

    @pytest.mark.parametrize("fields", [{}, {"do_resize": False, "max_num_patches": 9}])
    def test_what_patches_do_not_cover_of_a_resized_image(self, fields):
        """Of 20 pixels a side one patch sees 16."""
        processor = AdaptiveViTImageProcessor(patch_size=16, size={"height": 20, "width": 20}, **fields)
        left = (torch.arange(8) < 4).float().expand(8, 8)
        outputs = SimpleNamespace(logits=torch.stack((left, 1 - left))[None])
        (segmented,) = processor.post_process_semantic_segmentation(outputs, [(20, 20)])
        assert torch.equal(segmented, (torch.arange(20) >= 8).long().expand(20, 20))

    def test_another_number_of_sizes(self):
        outputs = SimpleNamespace(logits=torch.randn(2, 3, 4, 4))
        with pytest.raises(ValueError, match="1 sizes for 2 images"):
            AdaptiveViTImageProcessor().post_process_semantic_segmentation(outputs, [(8, 8)])

    def test_pipeline(self, tmp_path):
        names = {index: f"class {index}" for index in range(5)}
        make(patch_selector="variance", id2label=names).save_pretrained(tmp_path)
        AdaptiveViTImageProcessor(size={"height": 64, "width": 64}, patch_size=8).save_pretrained(tmp_path)
        segment = pipeline("image-segmentation", model=str(tmp_path))
        answers = segment(PIL.Image.new("RGB", (90, 70), "red"))
        assert {answer["label"] for answer in answers} <= set(names.values())
        masks = np.stack([np.asarray(answer["mask"]) for answer in answers])
        assert masks.shape[1:] == (70, 90) and ((masks == 255).sum(axis=0) == 1).all()


class TestRefuses:
    def test_labels_of_another_size(self):
        with pytest.raises(ValueError, match=r"\(1, 40, 32\).*32x32 pixels"):
            make()(torch.randn(1, 3, 32, 32), labels=torch.zeros(1, 40, 32, dtype=torch.long))

    @pytest.mark.parametrize("label", [5, -1])
    def test_labels_outside_the_classes(self, label):
        with pytest.raises(ValueError, match=rf"Label {label} is outside 0\.\.4 \(255 marks"):
            make()(torch.randn(1, 3, 32, 32), labels=torch.full((1, 32, 32), label))

    def test_grids_that_differ(self):
        processor = AdaptiveViTImageProcessor(return_patches=True, patch_size=8, do_resize=False)
        batch = processor(
            [torch.rand(3, 32, 32), torch.rand(3, 16, 64)], return_tensors="pt", do_rescale=False
        )
        with pytest.raises(ValueError, match="grids of"):
            make()(**batch)

    def test_unknown_decoders(self):
        with pytest.raises(Exception, match="segmentation_decoder"):
            tiny_config(segmentation_decoder="spiral")
