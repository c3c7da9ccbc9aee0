"""Tests of every model, for videos and volumes: see `test_common.py` and
`test_tracing.py`."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    Trainer,
    TrainingArguments,
    VideoMAEImageProcessor,
    VideoMAEVideoProcessor,
    pipeline,
)

from tests.helpers.models import SELECTIONS
from tests.helpers.remote_code import run_elsewhere
from tests.helpers.videos import ENCODINGS, clips, every_encoding, video_config
from vit_hf import (
    AdaptiveViTBackbone,
    AdaptiveViTForVideoClassification,
    AdaptiveViTModel,
    KeepRateSchedule,
    PatchCollator,
    predict_streaming,
    predict_tiled,
)
from vit_hf.data.moving_digits import MovingDigits
from vit_hf.model.patches import ImagePatches, flatten_channels_last


def answer(output) -> torch.Tensor:
    return output[next(key for key in ("logits", "feature_maps", "last_hidden_state") if key in output)]


def all_options(**fields):
    return video_config(num_register_tokens=2, layerscale_value=0.1, thumbnail_context=True, **fields)


@every_encoding
def test_save_and_load(encoding, tmp_path):
    model = AdaptiveViTForVideoClassification(all_options(position_encoding=encoding)).eval()
    model.save_pretrained(tmp_path)
    again, info = AutoModelForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is AdaptiveViTForVideoClassification and not any(info.values())
    videos = clips(frames=8, height=40)
    assert torch.equal(answer(model(videos)), answer(again(videos)))
    base = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    torch.testing.assert_close(base(videos).last_hidden_state, model.vit(videos).last_hidden_state)


def test_backbone_by_its_auto_class():
    config = video_config(out_features=["stage1", "stage3"])
    model = AutoBackbone.from_config(config).eval()
    assert type(model) is AdaptiveViTBackbone and model.channels == [32, 32]
    assert [one.shape for one in model(clips()).feature_maps] == [(2, 32, 3, 4, 4)] * 2


@every_encoding
def test_meta_initialization_leaves_nothing_behind(encoding, tmp_path):
    config = all_options(position_encoding=encoding, patch_selector="policy")
    with torch.device("meta"):
        model = AdaptiveViTForVideoClassification(config)
    assert all(value.is_meta for value in model.state_dict().values())
    # A file with hardly anything: the rest is initialized, and none of it is what was in memory before.
    config.save_pretrained(tmp_path)
    save_file(
        {"vit.layernorm.weight": torch.full((32,), 7.0)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    junk = [torch.full((64, 64), 1e6) for _ in range(200)]
    del junk
    loaded = AdaptiveViTForVideoClassification.from_pretrained(tmp_path)
    for name, value in loaded.named_parameters():
        assert not value.is_meta and value.abs().max() < 10, name
    deviation = loaded.vit.embeddings.patch_embeddings.projection.weight.detach().std().item()
    assert deviation == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("initializer", ["truncated_normal", "xavier_uniform"])
def test_initializers_know_the_patch_embedding(initializer):
    model = AdaptiveViTModel(video_config(initializer=initializer))
    weight = model.embeddings.patch_embeddings.projection.weight
    bound = {"truncated_normal": 0.4, "xavier_uniform": (6 / (3 * 2 * 64 + 32)) ** 0.5}[initializer]
    assert 0.9 * bound < weight.abs().max() <= bound


@every_encoding
@pytest.mark.parametrize("selection", ["motion", "both_merge"])
def test_sdpa_equals_eager(encoding, selection):
    fields = {"motion": {"patch_selector": "motion"}, **SELECTIONS}[selection]
    model = AdaptiveViTForVideoClassification(video_config(**fields, position_encoding=encoding)).eval()
    videos = clips(height=40)
    fused = model(videos).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(videos).logits, fused, atol=1e-5, rtol=1e-5)


def test_hidden_states_and_attentions():
    model = AdaptiveViTForVideoClassification(video_config()).eval()
    output = model(clips(), output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 49, 32)] * 4
    assert [weights.shape for weights in output.attentions] == [(2, 4, 49, 49)] * 3
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 4, 49))


@pytest.mark.parametrize("selection", ["dense", "distilled", "perturbed", "cross_attention", "gumbel"])
def test_gradient_checkpointing_gives_the_same_gradients(selection):
    plain = AdaptiveViTForVideoClassification(video_config(**SELECTIONS[selection])).train()
    saving = copy.deepcopy(plain)
    getattr(saving, "activation_checkpointing_enable", saving.gradient_checkpointing_enable)()
    videos = clips()
    for model in (plain, saving):
        torch.manual_seed(1)
        model(videos, labels=torch.tensor([1, 3])).loss.backward()
    for (name, value), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(value.grad, other.grad, msg=name)


# Tracing takes seconds: one is traced every time, all by the slow tests.
TRACED = {("motion", "learned")}
COMBINATIONS = [
    *((selection, "learned") for selection in [*SELECTIONS, "motion"]),
    *(("motion", encoding) for encoding in ENCODINGS if encoding != "learned"),
    ("both_gumbel", "rotary_mixed"),
]


@pytest.mark.parametrize(
    ("selection", "encoding"),
    [pytest.param(*one, marks=[] if one in TRACED else [pytest.mark.slow]) for one in COMBINATIONS],
)
def test_compile_and_export(selection, encoding):
    torch.compiler.reset()
    fields = {"motion": {"patch_selector": "motion"}, **SELECTIONS}[selection]
    model = AdaptiveViTForVideoClassification(video_config(**fields, position_encoding=encoding)).eval()
    videos = clips(frames=8)
    with torch.no_grad():
        expected = model(videos).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(videos).logits, expected, atol=1e-5, rtol=1e-5)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (videos,), dynamic_shapes={"pixel_values": {0: batch}})
    more = clips(5, frames=8)
    torch.testing.assert_close(exported.module()(more).logits, model(more).logits, atol=1e-5, rtol=1e-5)


def test_half_precision():
    model = AdaptiveViTForVideoClassification(video_config(patch_selector="motion")).eval()
    videos = clips()
    expected = model(videos)
    got = copy.deepcopy(model).bfloat16()(videos)
    assert got.logits.dtype == torch.bfloat16 and torch.equal(got.selected_patches, expected.selected_patches)
    torch.testing.assert_close(got.logits.float(), expected.logits, atol=0.15, rtol=0.1)


def test_trainer_learns_clips(tmp_path):
    """Plain Trainer on ten clips: the loss falls, the keep rate follows its schedule, and a save loads
    again."""
    config = video_config(
        num_channels=1,
        num_labels=10,
        patch_selector="motion",
        num_selected_patches=0.5,
        initializer_range=0.02,
    )
    model = AdaptiveViTForVideoClassification(config)
    rows = MovingDigits("train", 10, num_frames=6, size=32, num_strokes=0)
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=40,
        per_device_train_batch_size=10,
        learning_rate=3e-3,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[KeepRateSchedule()])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    trainer.save_model(tmp_path / "saved")
    again = AdaptiveViTForVideoClassification.from_pretrained(tmp_path / "saved")
    videos = torch.stack([rows[index]["pixel_values"] for index in range(3)])
    assert torch.equal(again(videos).logits, model.eval()(videos).logits)


def test_videos_that_were_cut_make_one_batch():
    """Of two lengths, by `PatchCollator`, with the answers that they have alone."""
    model = AdaptiveViTForVideoClassification(video_config(position_encoding="rotary")).eval()
    rows, alone = [], []
    for frames in (4, 8):
        video = clips(1, frames=frames)
        tokens = ImagePatches.from_images(video.transpose(1, 2), (2, 8, 8)).gather()
        rows.append(
            {
                "pixel_values": flatten_channels_last(tokens.features, (2, 8, 8))[0],
                "patch_coordinates": tokens.coordinates[0],
                "spatial_shapes": tokens.grid[0],
                "pixel_attention_mask": torch.ones(tokens.features.shape[1]),
                "labels": 1,
            }
        )
        alone.append(model(video).logits)
    batch = PatchCollator()(rows)
    torch.testing.assert_close(model(**batch).logits, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_video_processor_to_model(tmp_path):
    """A video processor of transformers prepares what the model takes, and is found beside it."""
    model = AdaptiveViTForVideoClassification(video_config(patch_selector="motion")).eval()
    processor = VideoMAEVideoProcessor(size={"height": 40, "width": 32}, do_center_crop=False)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoVideoProcessor.from_pretrained(tmp_path)
    videos = [torch.randint(0, 256, (6, 3, 50, 60), dtype=torch.uint8) for _ in range(2)]
    batch = again(videos, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 6, 3, 40, 32)
    assert model(**batch).logits.shape == (2, 5)


def test_pipeline_reads_a_file(tmp_path):
    """By PyAV; with a video processor transformers wants torchcodec for that."""
    av = pytest.importorskip("av")
    model = AdaptiveViTForVideoClassification(video_config(patch_selector="motion")).eval()
    processor = VideoMAEImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    frames = torch.randint(0, 256, (12, 64, 64, 3), dtype=torch.uint8).numpy()
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    classify = pipeline("video-classification", model=model, image_processor=processor, device="cpu")
    answers = classify(str(tmp_path / "clip.mp4"))
    assert len(answers) == 5 and sum(one["score"] for one in answers) == pytest.approx(1, abs=1e-5)


def test_without_the_package(tmp_path):
    """A saved model carries its code, and so does its backbone."""
    model = AdaptiveViTForVideoClassification(
        video_config(patch_selector="motion", position_encoding="sinusoidal_3d")
    )
    path = tmp_path / "saved"
    model.eval().save_pretrained(path)
    videos = clips()
    torch.save({"videos": videos, "logits": model(videos).logits.detach()}, path / "expected.pt")
    out = run_elsewhere(
        f"""
        import torch
        from transformers import AutoModelForVideoClassification
        expected = torch.load({str(path)!r} + "/expected.pt")
        model = AutoModelForVideoClassification.from_pretrained({str(path)!r}, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        torch.testing.assert_close(model(expected["videos"]).logits, expected["logits"], atol=0, rtol=0)
        print("equal")
        """,
        tmp_path,
    )
    assert "equal" in out


def test_ways_for_large_images_refuse_videos(tmp_path):
    model = AdaptiveViTForVideoClassification(video_config(patch_selector="motion"))
    image = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()
    with pytest.raises(ValueError, match="not read by bands"):
        predict_streaming(model, image)
    with pytest.raises(ValueError, match="Tiles are images"):
        predict_tiled(model, image, tile=32)
