"""A study of settings on a few small images."""

import pytest

from tests.helpers.scripts import command, read_flags
from vit_hf.arguments import (
    AugmentationArguments,
    DataArguments,
    FinetuningArguments,
    ModelArguments,
    TuningArguments,
)
from vit_hf.search import tuning as tuning_module
from vit_hf.search.tuning import TrialArguments, prepare_tuning
from vit_hf.training.arguments import RunArguments


optuna = pytest.importorskip("optuna")
GROUPS = (ModelArguments, DataArguments, AugmentationArguments, FinetuningArguments, RunArguments)
FLAGS = [
    *("--validation_fraction", "0.3", "--image_size", "32", "--max_steps", "2", "--per_device_train_batch_size", "2"),  # noqa: E501
    *("--config_overrides", '{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}'),
    *("--layer_decays", "0.5", "0.9", "--batch_sizes", "1", "3", "--use_cpu", "--disable_tqdm", "true"),
    *("--eval_strategy", "steps", "--eval_steps", "1"),
    *("--seed", "3", "--learning_rates", "1e-4", "1e-2", "--weight_decays", "0.01", "0.1"),
]  # fmt: skip


@pytest.mark.slow
def test_script_tunes_goes_on_and_writes_what_finetune_takes(
    image_folder,
    tmp_path,
    capsys,
    monkeypatch,
):
    folder, seen = tmp_path / "study", []
    optimizer_of = tuning_module.optimizer_of

    def watching(task, model, training):
        seen.append((id(model), training.learning_rate, training.weight_decay, task.layer_decay))
        optimizer, options = optimizer_of(task, model, training)
        rates = {group["lr"] for group in options["params"]}
        assert max(rates) == training.learning_rate and min(rates) < max(rates)
        return optimizer, options

    monkeypatch.setattr(tuning_module, "optimizer_of", watching)
    flags = ["--dataset", str(image_folder), "--output_dir", str(folder), *FLAGS]
    tune = command("tune")
    tune([*flags, "--num_trials", "2"])
    assert "Best of 2 trials: accuracy" in capsys.readouterr().out
    study = optuna.load_study(storage=tuning_module.journal(folder), study_name="vit_hf")
    study.ask()  # one that was killed
    tune([*flags, "--num_trials", "3"])
    tune([*flags, "--num_trials", "3"])
    study = optuna.load_study(storage=tuning_module.journal(folder), study_name="vit_hf")
    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert len(done) == 3 and len(study.trials) == 4
    # Each had a model of its own, and an optimiser with its settings.
    for trial, (_, rate, decay, layer_decay) in zip(done, seen, strict=True):
        assert (trial.params["learning_rate"], trial.params["weight_decay"]) == (rate, decay)
        assert trial.params["layer_decay"] == layer_decay and 0.5 <= layer_decay <= 0.9
        assert trial.params["per_device_train_batch_size"] in (1, 3) and 1e-4 <= rate <= 1e-2
    assert len({rate for _, rate, _, _ in seen}) == 3
    assert not [path for path in folder.rglob("*") if "checkpoint" in path.name]

    arguments = read_flags(GROUPS, [str(folder / "best.yaml")])
    model, data, _, method, training = arguments
    best = study.best_trial.params
    assert (training.learning_rate, training.weight_decay) == (best["learning_rate"], best["weight_decay"])
    assert (training.warmup_steps, method.layer_decay) == (best["warmup_steps"], best["layer_decay"])
    assert training.per_device_train_batch_size == best["per_device_train_batch_size"]
    assert (data.dataset, training.max_steps, training.seed) == (str(image_folder), 2, 3)
    assert (training.save_strategy, training.save_steps) == ("steps", 1) and training.load_best_model_at_end
    assert model.config_overrides["hidden_size"] == 16 and training.output_dir == str(folder / "best")
    assert (folder / "study.png").stat().st_size > 10_000


def prepare(folder, output_dir, training=None, method=None, **tuning):
    return prepare_tuning(
        ModelArguments(config_overrides={"hidden_size": 16, "num_attention_heads": 2}, image_size=32),
        DataArguments(dataset=str(folder), validation_fraction=0.3),
        AugmentationArguments(),
        FinetuningArguments(**(method or {})),
        TuningArguments(**tuning),
        TrialArguments(output_dir=str(output_dir), use_cpu=True, **(training or {})),
        set(),
    )


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch, image_folder):
    monkeypatch.setattr(tuning_module, "is_optuna_available", lambda: False)
    with pytest.raises(ImportError, match=r"vit_hf\[search\]"):
        prepare(image_folder, tmp_path / "study")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rates": [0.0, 1e-2]}, "learning_rates is .*above 0"),
        ({"learning_rates": [1e-2, 1e-3]}, "least and the highest"),
        ({"warmup_shares": [0.0, 1.5]}, "warmup_shares is .*from 0 to 1"),
        ({"layer_decays": [0.5, 1.2]}, "layer_decays is .*at most 1"),
        ({"batch_sizes": [0]}, r"batch_sizes is \[0\]"),
        ({"num_trials": 0}, "num_trials is 0"),
        ({"method": {"ema_decay": 0.9}}, "ema_decay is 0.9, but is not for tuning"),
        ({"training": {"eval_strategy": "no"}}, "eval_strategy"),
    ],
)
def test_what_cannot_be_tuned_is_said_first(tmp_path, image_folder, changes, words):
    with pytest.raises(ValueError, match=words):
        prepare(image_folder, tmp_path / "study", **changes)
    assert not (tmp_path / "study").exists()
