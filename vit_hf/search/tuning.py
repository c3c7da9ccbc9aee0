"""Tuning of optimizer settings by Optuna, through `Trainer.hyperparameter_search`."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers.integrations import is_optuna_available
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..arguments import (
    AugmentationArguments,
    DataArguments,
    FinetuningArguments,
    ModelArguments,
    TuningArguments,
)
from ..training.arguments import RunArguments
from ..training.classification import Classification
from ..training.hub_trainer import HubTrainer
from ..training.output_dir import check_output_dir
from ..training.task import build, make_trainer, optimizer_of


if TYPE_CHECKING:
    import optuna


STUDY_NAME = "vit_hf"
JOURNAL_NAME = "study.journal"
# Arguments of the trials that best.yaml leaves out.
KEPT_FOR_TRIALS = {"save_strategy", "save_steps", "load_best_model_at_end", "push_to_hub"}


@dataclass
class TrialArguments(RunArguments):
    """Arguments of Trainer for trials, which save nothing."""

    save_strategy: SaveStrategy | str = field(default="no", metadata={"help": "trials are not saved"})
    load_best_model_at_end: bool = field(default=False, metadata={"help": "trials are not saved"})


@dataclass
class TuningRun:
    """Validated study, ready to start.

    Attributes:
        trainer: trainer of fine-tuning, which makes a new model for each trial.
        tuning: ranges of the settings.
        task: fine-tuning, with its other settings.
        metric, more_is_better: metric on the validation split that trials are compared by, and its direction.
        given: arguments given on the command line, by the flags of `vit-hf finetune`.
        folder: folder of the study.
        notes: descriptions of data that are left out, a line each.
    """

    trainer: HubTrainer
    tuning: TuningArguments
    task: Classification
    metric: str
    more_is_better: bool
    given: dict[str, Any]
    folder: Path
    notes: list[str] = field(default_factory=list)

    def execute(self) -> "optuna.Study":
        """Runs the trials that the study in the folder does not have yet.

        A trial that was killed does not count. Writes `best.yaml`, which `vit-hf finetune` takes, and
        `study.png`.
        """
        import optuna

        storage = journal(self.folder)
        direction = "maximize" if self.more_is_better else "minimize"
        study = optuna.create_study(
            storage=storage, study_name=STUDY_NAME, load_if_exists=True, direction=direction
        )
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        left = self.tuning.num_trials - len(finished(study))
        if left > 0:
            self.trainer.hyperparameter_search(
                hp_space=self._set_up,
                compute_objective=lambda metrics: metrics[f"eval_{self.metric}"],
                n_trials=left,
                direction=direction,
                backend="optuna",
                storage=storage,
                study_name=STUDY_NAME,
                load_if_exists=True,
                # A study that continues must not repeat its draws.
                sampler=optuna.samplers.TPESampler(seed=self.trainer.args.seed + len(study.trials)),
                pruner=optuna.pruners.MedianPruner() if self.tuning.prune else optuna.pruners.NopPruner(),
            )
        study = optuna.load_study(storage=storage, study_name=STUDY_NAME)
        self._write(study)
        return study

    def describe(self) -> str:
        """Returns a summary of the study in a few lines."""
        judged = f"compared by {self.metric} on the validation split"
        study = f"Study: {self.tuning.num_trials} trials, {judged}; in {self.folder}"
        return "\n".join([study, *(f"       {note}" for note in self.notes)])

    def _set_up(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Gives the trainer the settings of a trial; called when it has a new model."""
        settings, args, model = self.tuning.suggest(trial), self.trainer.args, self.trainer.model
        for name, value in settings.items():
            if name != "layer_decay":
                setattr(args, name, value)
        self.trainer._train_batch_size = args.train_batch_size
        self.task.layer_decay = settings.get("layer_decay", self.task.layer_decay)
        self.trainer.optimizer_cls_and_kwargs = optimizer_of(self.task, model, args)
        # Set here, because Trainer would round a fraction of the steps if a whole number stood before.
        return {}

    def _write(self, study: "optuna.Study") -> None:
        from .tuning_drawing import draw_study

        best = self.given | study.best_trial.params | {"output_dir": str(self.folder / "best")}
        path = self.folder / "best.yaml"
        score = f"{self.metric} {study.best_value:.4f}"
        comment = f"# {score} on the validation split, trial {study.best_trial.number}\n"
        path.write_text(comment + yaml.safe_dump(best, sort_keys=False))
        figure = draw_study(finished(study), self.metric, self.more_is_better)
        figure.savefig(self.folder / "study.png")


def finished(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    """Returns the trials that are complete or were pruned."""
    import optuna

    states = [optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED]
    return study.get_trials(deepcopy=False, states=states)


def journal(folder: Path) -> "optuna.storages.BaseStorage":
    """Returns the storage of a study, and creates its folder."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL_NAME)))


def prepare_tuning(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    augmentation: AugmentationArguments,
    method: FinetuningArguments,
    tuning: TuningArguments,
    training: TrialArguments,
    given: set[str],
) -> TuningRun:
    """Checks a study, loads its data and builds its trainer, up to the first trial.

    Args:
        given: names of the arguments given on the command line, which `best.yaml` repeats.

    Raises:
        ImportError: without Optuna.
        OSError, TypeError, ValueError: for wrong arguments or data.
    """
    if not is_optuna_available():
        raise ImportError("Tuning needs Optuna: pip install vit_hf[search]")
    if training.world_size > 1:
        raise ValueError("a study runs in one process: start it without torchrun")
    refused = {
        "ema_decay": method.ema_decay,
        "freeze_backbone_ratio": method.freeze_backbone_ratio,
        "overwrite_output_dir": training.overwrite_output_dir,
    }
    for name, value in refused.items():
        if value:
            raise ValueError(
                f"{name} is {value}, but is not for tuning: leave it out, and give it to finetune with "
                "best.yaml"
            )
    if training.eval_strategy == IntervalStrategy.NO:
        raise ValueError(
            "eval_strategy is 'no', but trials are compared on the validation split: give 'epoch' or 'steps'"
        )
    folder = Path(training.output_dir)
    if not (folder / JOURNAL_NAME).is_file():
        check_output_dir(folder)
    values = training.to_dict()
    for group in (model_arguments, data_arguments, augmentation, method):
        values |= asdict(group)
    repeated = {name: values[name] for name in values if name in given and name not in KEPT_FOR_TRIALS}
    # finetune saves whenever it evaluates, to end with the best checkpoint.
    for evaluates, saves in (("eval_strategy", "save_strategy"), ("eval_steps", "save_steps")):
        if evaluates in repeated:
            repeated[saves] = repeated[evaluates]
    training.push_to_hub = False
    task = Classification(model_arguments, data_arguments, augmentation, method)
    model, processor, examples = build(task, training, needs_validation=True)
    trainer = make_trainer(task, model, processor, examples, training)
    trainer.model_init = task.make_model
    metric, more_is_better = task.best_metric()
    return TuningRun(
        trainer, tuning, task, metric, more_is_better, repeated, folder, task.data.describe_left_out()
    )
