"""Which of equally good checkpoints is kept, and which settings are told of a model."""

import pytest
from transformers import TrainingArguments

from tests.helpers.models import tiny_config, tiny_swin_config
from vit_hf import AdaptiveViTForImageClassification
from vit_hf.inference.evaluation import selection_settings
from vit_hf.training.hub_trainer import HubTrainer


@pytest.mark.parametrize(
    ("scores", "losses", "best"),
    [
        ([0.5, 0.8, 0.8, 0.7], [3.0, 2.0, 1.0, 0.5], 3),
        ([0.5, 0.8, 0.8, 0.7], [3.0, 1.0, 2.0, 0.5], 2),
        ([0.8, 0.8, 0.8], [1.0, 1.0, 1.0], 3),
        ([0.8, 0.8, 0.8], [None, None, None], 3),
        ([0.8, 0.8, 0.8], [2.0, 1.0, 1.5], 2),
        ([0.5, 0.8, 0.9], [1.0, 2.0, 3.0], 3),
    ],
)
@pytest.mark.parametrize("greater_is_better", [True, False])
def test_best_of_equals(scores, losses, best, greater_is_better, tmp_path):
    args = TrainingArguments(
        output_dir=str(tmp_path),
        eval_strategy="steps",
        save_strategy="steps",
        metric_for_best_model="score",
        greater_is_better=greater_is_better,
        report_to="none",
        use_cpu=True,
    )
    model = AdaptiveViTForImageClassification(tiny_config())
    trainer = HubTrainer(model, args, eval_dataset=[])
    for step, (score, loss) in enumerate(zip(scores, losses, strict=True), start=1):
        trainer.state.global_step = step
        metrics = {"eval_score": score if greater_is_better else -score}
        if loss is not None:
            metrics["eval_loss"] = loss
        trainer.state.log_history.append({**metrics, "step": step})
        trainer._determine_best_metric(metrics, trial=None)
    assert trainer.state.best_global_step == best


def test_settings_of_what_a_model_does():
    assert selection_settings(tiny_config()) == {}
    assert selection_settings(tiny_swin_config()) == {}
    selecting = {"patch_selector": "variance", "num_selected_patches": 6}
    assert selection_settings(tiny_config(**selecting)) == selecting
    reducing = {"token_reducer": "merge", "keep_rate": 0.7, "reduction_layers": [1]}
    assert selection_settings(tiny_config(**reducing)) == reducing
