"""Trainer that pushes what `vit_hf.push_to_hub` does: weights, code and model card."""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import Trainer, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..hub.push import keeping, write_card
from .curves import CURVES_CAPTION, CURVES_NAME


class HubTrainer(Trainer):
    """`Trainer` that publishes code and model card of this package with every push (`push_to_hub=True`).

    The `training_args.bin` that Trainer uploads does not contain the token.

    Args:
        card: arguments of the model card that the run does not know, as in `vit_hf.push_to_hub`: `license`,
            `dataset`, `examples` (images to publish) and others.
        args, kwargs: arguments of `Trainer`.
    """

    def __init__(self, *args: Any, card: dict[str, Any] | None = None, **kwargs: Any):
        self.card = card or {}
        training = kwargs.get("args") or next(iter(args[1:2]), None)
        if getattr(training, "hub_token", None):
            training.hub_token = Token(training.hub_token)
        super().__init__(*args, **kwargs)

    def create_model_card(self, model_name: str | None = None, **kwargs: Any) -> None:
        """Writes `README.md` into the output folder.

        Args:
            model_name: title; by default the name of the repository.
            kwargs: `license`, `tags`, `finetuned_from` and `dataset`; they override those of the run.
        """
        if not self.is_world_process_zero():
            return
        given = {
            "model_name": model_name,
            "license": kwargs.get("license"),
            "tags": kwargs.get("tags"),
            "base_model": kwargs.get("finetuned_from"),
            "dataset": kwargs.get("dataset"),
        }
        model = self.accelerator.unwrap_model(self.model)
        known = {
            "base_model": model.config._name_or_path or None,
            "metrics": measured(self.state, self.args.load_best_model_at_end),
            "training_arguments": self.args,
        }
        given = {name: value for name, value in given.items() if value}
        folder = Path(self.args.output_dir)
        if (folder / CURVES_NAME).is_file():
            known["pictures"] = {CURVES_CAPTION: CURVES_NAME}
        repo_id = self.hub_model_id or self.args.hub_model_id or folder.absolute().name
        write_card(
            model,
            self.processing_class,
            folder,
            repo_id=repo_id,
            token=self.args.hub_token,
            **{**known, **self.card, **given},
        )

    def push_to_hub(self, *args: Any, **kwargs: Any) -> CommitInfo | None:
        """Pushes as transformers does; a note on any error says how to push the output folder again."""
        folder = Path(self.args.output_dir)
        checkpoints = ("--exclude", f"{PREFIX_CHECKPOINT_DIR}-*", "--exclude", "_*")
        repo_id = self.hub_model_id or self.args.hub_model_id or folder.absolute().name
        with keeping(folder, repo_id, self.args.hub_private_repo, self.args.hub_revision, *checkpoints):
            return super().push_to_hub(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Breaks ties of transformers' metric by the lower loss, and then by the later step."""
        best = self.state.best_metric
        if super()._determine_best_metric(metrics, trial):
            return True
        name = self.args.metric_for_best_model
        if name is None or metrics[name if name.startswith("eval_") else f"eval_{name}"] != best:
            return False
        steps = {
            entry["step"]: entry["eval_loss"] for entry in self.state.log_history if "eval_loss" in entry
        }
        loss = steps.get(self.state.best_global_step)
        if loss is not None and metrics.get("eval_loss", loss) > loss:
            return False
        if self.state.best_global_step is not None:  # set if checkpoints are saved
            self.state.best_global_step = self.state.global_step
        return True

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # transformers copies the weights without the code that loads them.
        for file in Path(checkpoint_folder).glob("*.py"):
            shutil.copy(file, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)


class Token(str):
    """Token that pickles and `repr` leave out."""

    def __reduce__(self) -> tuple:
        return (str, ("<HUB_TOKEN>",))

    def __deepcopy__(self, memo: dict) -> "Token":
        return self

    def __repr__(self) -> str:
        return "'<HUB_TOKEN>'"


def measured(state: TrainerState, is_best: bool) -> dict[str, float]:
    """Returns the metrics of the final model, measured after training or at its step."""
    log = state.log_history
    ends = [index for index, entry in enumerate(log) if "train_runtime" in entry]
    after = log[ends[-1] + 1 :] if ends else log
    if not any(name.startswith(("eval_", "test_")) for entry in after for name in entry):
        step = (is_best and state.best_global_step) or state.global_step
        after = [entry for entry in log if entry["step"] == step]
    merged = {name: value for entry in after for name, value in entry.items()}
    return {name: value for name, value in merged.items() if name.startswith(("eval_", "test_"))}
