"""What Trainer logs arrives in TensorBoard and in trackio, without a network."""

import pytest

from tests.helpers.models import tiny_config
from tests.helpers.trainers import train
from vit_hf import AdaptiveViTForImageClassification, KeepRateSchedule


# How the loggers call what Trainer logs.
NAMES = {"train/loss": "loss", "eval/loss": "eval_loss", "train/grad_norm": "grad_norm"}


def run(folder, logger: str, **arguments) -> list[dict]:
    """A short run; what Trainer says it logged at each step, the summary at the end left out."""
    config = tiny_config(patch_selector="distilled", num_selected_patches=4)
    trainer = train(
        folder,
        AdaptiveViTForImageClassification(config),
        [KeepRateSchedule()],
        report_to=logger,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        max_steps=4,
        **arguments,
    )
    return [
        {key: value for key, value in entry.items() if key != "epoch"} for entry in trainer.state.log_history
    ]


def steps(history: list[dict], name: str) -> dict[int, float]:
    return {entry["step"]: entry[name] for entry in history if name in entry}


def test_tensorboard(tmp_path, monkeypatch):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    history = run(tmp_path / "run", "tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    for tag, name in NAMES.items():
        found = {event.step: event.value for event in events.Scalars(tag)}
        assert found == pytest.approx(steps(history, name), rel=1e-5)
        assert found


def test_trackio(tmp_path, monkeypatch):
    # The folder is read when trackio is imported; nothing else here does that.
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("TRACKIO_AUTO_LOG_CPU", "0")
    pytest.importorskip("trackio", reason="pip install trackio")
    from trackio.sqlite_storage import SQLiteStorage

    history = run(
        tmp_path / "run", "trackio", project="tiny", run_name="first", trackio_static_space_id=False
    )
    assert (tmp_path / "trackio" / "tiny.db").is_file()
    logs = SQLiteStorage.get_logs("tiny", "first")
    for tag, name in NAMES.items():
        found = {entry["train/global_step"]: entry[tag] for entry in logs if tag in entry}
        assert found == steps(history, name)
        assert found
