"""ViViT and VideoMAE of transformers as an AdaptiveViT: the same outputs, from modules and from files."""

import pytest
import torch
import transformers as t

from tests.helpers.originals import perturbed
from tests.helpers.video_originals import (
    SHAPE,
    VIDEO_ORIGINALS,
    VIDEOMAE,
    VIVIT,
    compare_video,
    predict_video,
    video_original,
)
from vit_hf import AdaptiveViTForVideoClassification, AdaptiveViTModel, convert
from vit_hf.checkpoints.families import CannotConvert


every_original = pytest.mark.parametrize("name", VIDEO_ORIGINALS)


@every_original
def test_outputs_are_those_of_the_original(name):
    found = compare_video(name)
    assert found.native < 1e-5 and found.selects


@every_original
def test_from_disk_and_back(name, tmp_path):
    """Labels are kept, the video processor prepares alike, and what is saved gives the same again."""
    original, videos = video_original(name), torch.randn(SHAPE)
    original.config.id2label = {index: f"class {index}" for index in range(5)}
    original.save_pretrained(tmp_path / "theirs")
    processor_class = t.VivitVideoProcessor if "vivit" in name else t.VideoMAEVideoProcessor
    processor = processor_class(
        image_mean=[0.1, 0.2, 0.3], size={"height": 24, "width": 32}, do_center_crop=False
    )
    processor.save_pretrained(tmp_path / "theirs")
    model, found = convert(tmp_path / "theirs")
    assert type(found) is processor_class
    clip = torch.randint(0, 256, (6, 3, 50, 60), dtype=torch.uint8)
    batch = found(clip, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], processor(clip, return_tensors="pt")["pixel_values"])
    torch.testing.assert_close(
        predict_video(model, videos), predict_video(original, videos), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        predict_video(model, batch["pixel_values"]),
        predict_video(original, batch["pixel_values"]),
        atol=1e-5,
        rtol=1e-5,
    )
    is_classifier = "encoder" not in name
    assert type(model) is (AdaptiveViTForVideoClassification if is_classifier else AdaptiveViTModel)
    assert not is_classifier or model.config.id2label == original.config.id2label
    model.save_pretrained(tmp_path / "ours")
    options = {} if is_classifier else {"add_pooling_layer": model.pooler is not None}
    again, report = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True, **options)
    assert not any(report.values())
    assert torch.equal(predict_video(again, videos), predict_video(model, videos))


def test_norm_of_the_mean_has_its_own_epsilon():
    """VideoMAE's does not follow `layer_norm_eps`: where the mean is small that shows."""
    original = video_original("videomae")
    with torch.no_grad():
        for layer in original.videomae.encoder.layer:  # branches that add nothing
            layer.attention.output.dense.weight.zero_()
            layer.attention.output.dense.bias.zero_()
            layer.output.dense.weight.zero_()
            layer.output.dense.bias.zero_()
        original.videomae.embeddings.position_embeddings *= 1e-3
        original.videomae.embeddings.patch_embeddings.projection.weight *= 1e-3
        original.videomae.embeddings.patch_embeddings.projection.bias *= 1e-3
    model, _ = convert(original)
    model.vit.embeddings.position_encoding.position_embeddings.data *= 1e-3
    videos = torch.randn(SHAPE)
    torch.testing.assert_close(
        predict_video(model, videos), predict_video(original, videos), atol=1e-5, rtol=1e-5
    )


def test_positions_of_late_patches_are_exact():
    """A table of 1568 places, computed in float32, would be wrong by 1e-4 at its end."""
    fields = {**VIDEOMAE, "image_size": 224, "patch_size": 16, "num_frames": 16}
    original = t.VideoMAEModel(t.VideoMAEConfig(**fields))
    model, _ = convert(original)
    table = model.embeddings.position_encoding.position_embeddings
    torch.testing.assert_close(table.data, original.embeddings.position_embeddings, atol=1e-6, rtol=0)


def test_a_converted_model_takes_other_sizes_and_lengths():
    for name in VIDEO_ORIGINALS:
        model, _ = convert(video_original(name))
        assert torch.isfinite(predict_video(model, torch.randn(1, 11, 3, 41, 50))).all()


def test_what_cannot_be_represented_is_refused():
    original = t.VideoMAEForVideoClassification(t.VideoMAEConfig(**VIDEOMAE, use_mean_pooling=False))
    with pytest.raises(CannotConvert, match="reads the first patch alone"):
        convert(original)
    assert type(convert(original.videomae)[0]) is AdaptiveViTModel


def test_pretrained_videomae_gives_its_encoder():
    original = perturbed(
        t.VideoMAEForPreTraining(t.VideoMAEConfig(**{**VIDEOMAE, "use_mean_pooling": False}))
    )
    model, _ = convert(original)
    videos = torch.randn(SHAPE)
    torch.testing.assert_close(
        predict_video(model, videos), predict_video(original.videomae, videos), atol=1e-5, rtol=1e-5
    )


def test_tubelets_that_are_not_square():
    fields = {**VIVIT, "tubelet_size": [3, 8, 16]}
    original = perturbed(t.VivitForVideoClassification(t.VivitConfig(**fields)))
    model, videos = convert(original)[0], torch.randn(SHAPE)
    assert model.config.patch_size == [8, 16] and model.config.tubelet_size == 3
    torch.testing.assert_close(
        predict_video(model, videos), predict_video(original, videos), atol=1e-5, rtol=1e-5
    )
