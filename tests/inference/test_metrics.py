import subprocess
import sys

import numpy as np
import pytest
from transformers import EvalPrediction

from vit_hf.inference.metrics import (
    F1,
    Accuracy,
    MeanSquaredError,
    TopKAccuracy,
    compute_metrics_for,
    evaluate,
)


def test_accuracy_and_f1():
    answers = {"predictions": [0, 1, 1, 2], "references": [0, 1, 2, 2]}
    assert Accuracy().compute(**answers) == {"accuracy": 0.75}
    # class 0: 1; class 1: precision 1/2, recall 1; class 2: precision 1, recall 1/2
    assert F1().compute(**answers)["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_f1_of_a_class_that_is_never_predicted_is_zero(recwarn):
    assert F1().compute(predictions=[0, 0], references=[0, 1])["f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert not [str(warning.message) for warning in recwarn]


def test_several_labels():
    answers = {"predictions": [[1, 0, 1], [0, 1, 0]], "references": [[1, 0, 1], [0, 1, 1]]}
    assert Accuracy("multilabel").compute(**answers) == {"exact_match": 0.5}
    assert F1("multilabel").compute(**answers)["f1"] == pytest.approx(6 / 7)


def test_top_k():
    scores = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]
    assert TopKAccuracy().compute(predictions=scores, references=[1, 0], k=2) == {"top_2_accuracy": 0.5}


def test_mean_squared_error():
    assert MeanSquaredError().compute(predictions=[[1.0], [2.0]], references=[[1.0], [4.0]]) == {"mse": 2.0}


def test_they_are_metrics_of_evaluate_that_take_batches():
    metric = Accuracy()
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add(prediction=1, reference=1)
    assert metric.compute() == {"accuracy": pytest.approx(2 / 3)}


def test_for_trainer():
    logits = np.eye(7, dtype=np.float32)
    metrics = compute_metrics_for("single_label_classification", 7)(EvalPrediction(logits, np.arange(7)))
    assert metrics == {"accuracy": 1.0, "f1": 1.0, "top_5_accuracy": 1.0}
    metrics = compute_metrics_for("single_label_classification", 5)(
        EvalPrediction((logits[:, :5], "else"), np.arange(7) % 5)
    )
    assert metrics.keys() == {"accuracy", "f1"}
    metrics = compute_metrics_for("multi_label_classification", 7)(EvalPrediction(logits - 0.5, logits))
    assert metrics == {"exact_match": 1.0, "f1": 1.0}
    metrics = compute_metrics_for("regression", 1)(EvalPrediction(logits[:, :1], logits[:, 0] + 1))
    assert metrics == {"mse": 1.0}
    with pytest.raises(ValueError, match="'ranking'; choose one of single_label_classification"):
        compute_metrics_for("ranking", 2)


@pytest.mark.parametrize("name", ["HF_METRICS_CACHE", "HF_MODULES_CACHE"])
def test_caches_need_not_be_writable(name, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(evaluate.config, name, str(tmp_path / "file" / "cache"))
    assert Accuracy().compute(predictions=[1], references=[1]) == {"accuracy": 1.0}


@pytest.mark.slow
def test_the_library_is_found_beside_a_script_of_its_name(tmp_path):
    (tmp_path / "evaluate.py").write_text("raise AssertionError('this is not the library')")
    (tmp_path / "script.py").write_text(
        "import sys; path = sys.path[:]\nfrom vit_hf.inference.metrics import Accuracy\nassert "
        "sys.path == path\n"
    )
    subprocess.run([sys.executable, tmp_path / "script.py"], check=True)
