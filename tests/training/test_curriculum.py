import logging

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import TrainerCallback, TrainerState, ViTConfig, ViTForImageClassification

from tests.conftest import SELECTIONS, every_selection, tiny_config
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.explanations.token_stages import place_groups
from vit_hf.training import dense_fraction_at
from vit_hf.training.curriculum import (
    MAX_FRAMES,
    CurriculumRecorder,
    Frame,
    load_frames,
    save_frames,
    without_chance,
)


def noise_image(height: int = 40, width: int = 48, seed: int = 0) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def recorder_for(run, **options) -> CurriculumRecorder:
    """On one image; its files lie beside the checkpoints."""
    options = {"images": noise_image(), "path": f"{run.trainer.args.output_dir}/curriculum.gif", **options}
    return CurriculumRecorder(image_processor=run.trainer.processing_class, **options)


@pytest.fixture
def record(make_run):
    """A function that trains for 10 steps, with everything every 5, and returns the run and its recorder."""

    def run(output_dir="run", callbacks=(), recorder=True, **arguments):
        options = {
            "keep_rate_schedule": True,
            "max_steps": 10,
            "eval_strategy": "no",
            "save_strategy": "steps",
            "save_steps": 5,
            "save_total_limit": None,
        }
        run = make_run(output_dir, **(options | arguments))
        recorded = recorder_for(run) if recorder else None
        for callback in (recorded, *callbacks):
            if callback is not None:
                run.trainer.add_callback(callback)
        run.execute()
        return run, recorded

    return run


def num_kept(frames: list[Frame]) -> list[int]:
    return [int(frame.masks[0].sum()) for frame in frames]


def num_frames(path) -> int:
    with PIL.Image.open(path) as image:
        return image.n_frames


def assert_same_frames(left: list[Frame], right: list[Frame]) -> None:
    assert [frame.step for frame in left] == [frame.step for frame in right]
    for one, other in zip(left, right, strict=True):
        assert one.tokens == other.tokens
        for mask, expected in zip(one.masks, other.masks, strict=True):
            np.testing.assert_array_equal(mask, expected)


class Stop(TrainerCallback):
    """Ends training as a crash does."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class TestWhatIsSeen:
    # Those in which training leaves nothing to chance once the selector does not.
    CERTAIN = sorted(name for name in SELECTIONS if "gumbel" not in name and name != "random")

    @pytest.mark.parametrize("dense_fraction", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("name", CERTAIN)
    def test_is_what_training_keeps(self, name, dense_fraction):
        model = AdaptiveViTForImageClassification(tiny_config(**SELECTIONS[name])).train()
        image_processor = AdaptiveViTImageProcessor(do_resize=False)
        recorder = CurriculumRecorder(noise_image(), image_processor, "unused.gif")
        recorder._prepare(model.vit)
        frame = recorder._look(model.vit, 7, dense_fraction)
        model.set_dense_fraction(dense_fraction)
        with torch.no_grad():
            pixels = image_processor(noise_image(), return_tensors="pt")["pixel_values"]
            outputs = model.vit(pixels, sample_selection=False)
        kept = outputs.selected_patches[0].numpy()
        groups = np.arange(len(kept))
        if outputs.token_assignments is not None:
            groups = outputs.token_assignments[0, -1].numpy()
        expected = place_groups(groups, kept, (5, 6))
        np.testing.assert_array_equal(frame.masks[0], expected >= 0)
        assert frame.tokens == [len(np.unique(groups[groups >= 0]))]
        assert frame.step == 7

    @pytest.mark.parametrize(
        ("dense_fraction", "kept"),
        # Of 30 at keep rates of 0.6, 0.72 and 1, twice.
        [(0.0, 11), (0.3, 16), (1.0, 30)],
    )
    def test_of_a_reducer_that_hides_instead_of_dropping(self, dense_fraction, kept):
        model = AdaptiveViTForImageClassification(tiny_config(**SELECTIONS["gumbel"])).train()
        recorder = CurriculumRecorder(noise_image(), AdaptiveViTImageProcessor(do_resize=False), "unused.gif")
        recorder._prepare(model.vit)
        assert recorder._look(model.vit, 0, dense_fraction).masks[0].sum() == kept

    @every_selection
    def test_leaves_no_trace(self, selection):
        config = tiny_config(**selection, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
        model = AdaptiveViTForImageClassification(config).train()
        model.set_dense_fraction(0.4)
        model.vit.layers[1].eval()  # a user's own doing
        recorder = CurriculumRecorder(noise_image(), AdaptiveViTImageProcessor(do_resize=False), "unused.gif")
        modes = [module.training for module in model.modules()]
        teachers = [reducer.learns_from_dense for reducer in model.vit.reducers.values()]
        states = torch.get_rng_state(), np.random.get_state()[1].copy()
        recorder._prepare(model.vit)
        recorder._look(model.vit, 0, 0.7)
        with pytest.raises(RuntimeError, match="broken"), without_chance(model.vit):
            torch.rand(3)
            raise RuntimeError("broken")
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])
        assert [module.training for module in model.modules()] == modes
        assert [reducer.learns_from_dense for reducer in model.vit.reducers.values()] == teachers
        assert model.vit.dense_fraction == 0.4
        assert torch.is_grad_enabled()


class TestRuns:
    def test_from_all_patches_to_the_target(self, record, tmp_path):
        run, recorder = record()
        assert [frame.step for frame in recorder.frames] == list(range(11))
        kept = num_kept(recorder.frames)
        assert kept[0] == 4 and kept[-1] == 2
        assert kept == sorted(kept, reverse=True)
        assert 3 in kept
        assert recorder.frames[0].caption == "step 0: 4 of 4 patches"
        assert num_frames(tmp_path / "run" / "curriculum.gif") == 11
        assert_same_frames(load_frames(recorder.masks_path), recorder.frames)
        assert run.trainer.model.vit.dense_fraction == 0
        assert recorder.path.stat().st_size < 200_000

    @pytest.mark.parametrize("first", [True, False])
    def test_wherever_it_stands_among_callbacks(self, make_run, first):
        run = make_run(keep_rate_schedule=True, max_steps=10, eval_strategy="no", save_strategy="no")
        recorder = recorder_for(run)
        callbacks = run.trainer.callback_handler.callbacks
        callbacks.insert(0 if first else len(callbacks), recorder)
        run.execute()
        # 2 + round(2 r), r being the dense_fraction of steps 0 to 9, and 0 at the end.
        dense_fractions = [dense_fraction_at(step, 10) for step in range(10)] + [0.0]
        assert num_kept(recorder.frames) == [
            2 + round(2 * dense_fraction) for dense_fraction in dense_fractions
        ]
        assert num_kept(recorder.frames) == [4, 4, 4, 4, 3, 3, 2, 2, 2, 2, 2]

    def test_training_is_the_same_with_and_without(self, record):
        options = {"save_strategy": "no", "ema_decay": 0.7}
        with_it, _ = record("with", **options)
        without, _ = record("without", recorder=False, **options)
        weights = dict(without.trainer.model.named_parameters())
        for name, parameter in with_it.trainer.model.named_parameters():
            assert torch.equal(parameter, weights[name]), name
        losses = [
            [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]
            for run in (with_it, without)
        ]
        assert losses[0] == losses[1] and len(losses[0]) == 10

    def test_with_accumulated_gradients(self, record):
        _, recorder = record(gradient_accumulation_steps=2, max_steps=6, save_strategy="no")
        assert [frame.step for frame in recorder.frames] == list(range(7))

    def test_every_few_steps(self, make_run):
        run = make_run(max_steps=10, eval_strategy="no", save_strategy="no")
        recorder = recorder_for(run, every_n_steps=4, images=[noise_image(), noise_image(seed=1)])
        run.trainer.add_callback(recorder)
        run.execute()
        assert [frame.step for frame in recorder.frames] == [0, 4, 8, 10]
        assert [len(frame.masks) for frame in recorder.frames] == [2] * 4
        # Without a schedule the target is all there is.
        assert set(num_kept(recorder.frames)) == {2}

    def test_patches_selected_by_the_loader(self, make_run):
        run = make_run(return_patches=True, max_steps=2, eval_strategy="no", save_strategy="no")
        recorder = recorder_for(run)
        run.trainer.add_callback(recorder)
        run.execute()
        assert recorder.frames[-1].caption == "step 2: 2 of 4 patches"


class TestInterruptions:
    def test_what_there_is_at_a_checkpoint_is_written(self, record, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            record(callbacks=[Stop(8)])
        assert [frame.step for frame in load_frames(tmp_path / "run" / "curriculum.npz")] == list(range(5))
        assert num_frames(tmp_path / "run" / "curriculum.gif") == 5

    def test_a_resumed_run_goes_on_with_its_animation(self, record, tmp_path):
        _, whole = record("whole")
        with pytest.raises(KeyboardInterrupt):
            record("parts", callbacks=[Stop(8)])
        path = tmp_path / "parts" / "curriculum.npz"
        # As if frames were written more often than checkpoints: these steps are done again.
        old = load_frames(path)
        later = [Frame(step, [~old[0].masks[0]], [1]) for step in (5, 6, 7)]
        save_frames(path, old + later)
        run, parts = record("parts")
        assert run.checkpoint.name == "checkpoint-5"
        assert_same_frames(parts.frames, whole.frames)
        assert num_frames(tmp_path / "parts" / "curriculum.gif") == 11

    def test_a_new_run_begins_anew(self, make_run, tmp_path):
        run = make_run(max_steps=2, eval_strategy="no", save_strategy="no")
        recorder = recorder_for(run, path=tmp_path / "elsewhere" / "a.gif")
        recorder.masks_path.parent.mkdir()
        save_frames(recorder.masks_path, [Frame(0, [np.ones((2, 2), dtype=bool)], [4])] * 3)
        run.trainer.add_callback(recorder)
        run.execute()
        assert [frame.step for frame in load_frames(recorder.masks_path)] == [0, 1, 2]

    @pytest.mark.parametrize("masks", [[np.ones((3, 2), dtype=bool)], [np.ones((2, 2), dtype=bool)] * 2])
    def test_masks_of_other_images_are_not_mixed_in(self, make_run, caplog, masks):
        run = make_run(eval_strategy="no", save_strategy="no")
        recorder = recorder_for(run)
        recorder.masks_path.parent.mkdir(parents=True, exist_ok=True)
        save_frames(recorder.masks_path, [Frame(0, masks, [4] * len(masks))])
        logger = logging.getLogger("vit_hf.training.curriculum")
        logger.addHandler(caplog.handler)
        try:
            state = TrainerState(global_step=5)
            recorder.on_train_begin(run.trainer.args, state, None, model=run.trainer.model)
        finally:
            logger.removeHandler(caplog.handler)
        assert recorder.frames == []
        assert "other images: the animation begins at step 5" in caplog.text

    def test_only_the_first_process_records(self, make_run):
        run = make_run(eval_strategy="no", save_strategy="no")
        recorder = recorder_for(run)
        state = TrainerState(is_world_process_zero=False, max_steps=10)
        arguments = (run.trainer.args, state, None)
        recorder.on_train_begin(*arguments, model=run.trainer.model)
        recorder.on_pre_optimizer_step(*arguments, model=run.trainer.model)
        recorder.on_save(*arguments)
        recorder.on_train_end(*arguments, model=run.trainer.model)
        assert recorder.frames == [] and not recorder.path.exists() and not recorder.masks_path.exists()


class TestFrames:
    def test_captions(self):
        half, all_ = np.array([[True, False]]), np.array([[True, True]])
        assert Frame(120, [half, half], [1, 1]).caption == "step 120: 1 of 2 patches"
        assert Frame(3, [all_], [1]).caption == "step 3: 2 of 2 patches in 1 tokens"
        assert Frame(3, [half, all_], [1, 2]).caption == "step 3: 75% of the patches"

    def test_are_read_as_written(self, tmp_path):
        generator = np.random.default_rng(0)
        frames = [
            Frame(step, [generator.random((3, 4)) > 0.5, generator.random((2, 5)) > 0.5], [step, 2])
            for step in (0, 10, 20)
        ]
        save_frames(tmp_path / "a.npz", frames)
        assert_same_frames(load_frames(tmp_path / "a.npz"), frames)
        assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]

    def test_of_very_many_some_are_shown(self, make_run, tmp_path, monkeypatch):
        recorder = CurriculumRecorder(
            noise_image(), AdaptiveViTImageProcessor(do_resize=False), tmp_path / "a.gif"
        )
        recorder._prepare(AdaptiveViTForImageClassification(tiny_config()).vit)
        shown = []
        monkeypatch.setattr(
            "vit_hf.training.curriculum.write_animation",
            lambda path, tiles, masks, captions: shown.extend(captions),
        )
        recorder.frames = [Frame(step, [np.ones((5, 6), dtype=bool)], [30]) for step in range(200)]
        recorder._write()
        assert len(set(shown)) == len(shown) == MAX_FRAMES
        assert shown[0].startswith("step 0:") and shown[-1].startswith("step 199:")
        assert len(load_frames(tmp_path / "a.npz")) == 200


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"images": []}, "has no images"),
            ({"path": "a.png"}, r"'a.png' must end in \.gif"),
            ({"every_n_steps": 0}, "every_n_steps=0 must be at least 1"),
        ],
    )
    def test_arguments(self, options, message):
        options = {"images": noise_image(), "path": "a.gif", **options}
        with pytest.raises(ValueError, match=message):
            CurriculumRecorder(image_processor=AdaptiveViTImageProcessor(), **options)

    def test_a_model_that_does_not_select(self, make_run):
        run = make_run()
        config = ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16
        )
        with pytest.raises(TypeError, match="ViTForImageClassification does not"):
            recorder_for(run).on_train_begin(
                run.trainer.args, run.trainer.state, None, model=ViTForImageClassification(config)
            )

    def test_images_that_do_not_fit_fail_before_training(self, make_run):
        run = make_run(eval_strategy="no", save_strategy="no")
        run.trainer.processing_class.do_resize = False
        run.trainer.add_callback(recorder_for(run, images=noise_image(16, 16)))
        with pytest.raises(ValueError, match="does not fit an image of 1 patches"):
            run.trainer.train()
        assert run.trainer.state.global_step == 0
