"""Metrics of the `evaluate` library that need no Hub: `evaluate.load` would download their scripts."""

import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error, top_k_accuracy_score
from transformers import EvalPrediction


# Python puts a script's folder first on its path, and ours holds scripts/evaluate.py: that is not the
# library.
_path = sys.path[:]
sys.path[:] = [folder for folder in _path if not Path(folder, "evaluate.py").is_file()]
evaluate = importlib.import_module("evaluate")
sys.path[:] = _path


class OfflineMetric(evaluate.Metric):
    """A metric that computes in memory, in one process, from everything at once.

    `config_name="multilabel"` takes a list of 0 and 1 for each example where the default takes a class.
    """

    def __init__(self, config_name: str | None = None):
        # `evaluate` creates a cache folder even for what stays in memory, and ~/.cache may be read-only.
        self._folder = tempfile.TemporaryDirectory(prefix="vit_hf_metric_")
        super().__init__(config_name=config_name, keep_in_memory=True, cache_dir=self._folder.name)

    @property
    def multilabel(self) -> bool:
        return self.config_name == "multilabel"

    def _features(self) -> dict[str, datasets.Features]:
        value = datasets.Value("int64")
        feature = datasets.List(value) if self.multilabel else value
        return {"predictions": feature, "references": feature}

    def _info(self) -> evaluate.MetricInfo:
        description = type(self).__doc__
        return evaluate.MetricInfo(
            description=description,
            citation="",
            inputs_description="",
            features=datasets.Features(self._features()),
        )


class Accuracy(OfflineMetric):
    """Fraction of correct predictions; with several labels, all must be correct (exact match)."""

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        name = "exact_match" if self.multilabel else "accuracy"
        return {name: float(accuracy_score(references, predictions))}


class F1(OfflineMetric):
    """F1 averaged over the classes that occur (macro); with several labels, over all decisions (micro)."""

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        average = "micro" if self.multilabel else "macro"
        # zero_division: a class that is never predicted scores 0, without a warning.
        return {"f1": float(f1_score(references, predictions, average=average, zero_division=0))}


class TopKAccuracy(OfflineMetric):
    """Fraction of examples whose class is among the k highest scores.

    Args (of `compute`):
        predictions: `(B, num_labels)` scores.
        references: `(B,)` classes.
        k: number of predictions allowed.
    """

    def _features(self) -> dict[str, datasets.Features]:
        return {
            "predictions": datasets.List(datasets.Value("float32")),
            "references": datasets.Value("int64"),
        }

    def _compute(self, predictions: list, references: list, k: int = 5) -> dict[str, float]:
        labels = range(len(predictions[0]))
        return {f"top_{k}_accuracy": float(top_k_accuracy_score(references, predictions, k=k, labels=labels))}


class MeanSquaredError(OfflineMetric):
    """Mean squared error of a regression, over all outputs."""

    def _features(self) -> dict[str, datasets.Features]:
        feature = datasets.List(datasets.Value("float32"))
        return {"predictions": feature, "references": feature}

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"mse": float(mean_squared_error(references, predictions))}


# problem_type -> the metric that decides which model is best, and whether more of it is better
BEST_MODEL_METRIC: dict[str, tuple[str, bool]] = {
    "single_label_classification": ("accuracy", True),
    "multi_label_classification": ("f1", True),
    "regression": ("mse", False),
}


def compute_metrics_for(
    problem_type: str, num_labels: int, top_k: int = 5
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Makes the `compute_metrics` of a `Trainer`.

    Args:
        problem_type: as in a model's config: "single_label_classification" gives accuracy, macro F1 and, with
            more than `top_k` classes, top-k accuracy; "multi_label_classification" exact match and micro F1
            of the labels whose logit is positive; "regression" the mean squared error.
        num_labels: outputs of the model.
        top_k: number of predictions that top-k accuracy allows.

    Returns:
        A function of predictions `(B, num_labels)` (logits, or a tuple that starts with them) and labels
        `(B,)` or `(B, num_labels)`.

    Raises:
        ValueError: for an unknown problem type.
    """
    if problem_type not in BEST_MODEL_METRIC:
        raise ValueError(f"problem_type is {problem_type!r}; choose one of {', '.join(BEST_MODEL_METRIC)}")

    def classes(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        predictions = {"predictions": logits.argmax(-1), "references": labels}
        results = Accuracy().compute(**predictions) | F1().compute(**predictions)
        if num_labels > top_k:
            results |= TopKAccuracy().compute(predictions=logits, references=labels, k=top_k)
        return results

    def several_labels(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        predictions = {"predictions": (logits > 0).astype(int), "references": labels.astype(int)}
        return Accuracy("multilabel").compute(**predictions) | F1("multilabel").compute(**predictions)

    def values(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return MeanSquaredError().compute(
            predictions=logits.reshape(len(logits), -1), references=labels.reshape(len(labels), -1)
        )

    compute = {
        "single_label_classification": classes,
        "multi_label_classification": several_labels,
        "regression": values,
    }[problem_type]

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions
        return compute(logits[0] if isinstance(logits, tuple) else logits, prediction.label_ids)

    return compute_metrics
