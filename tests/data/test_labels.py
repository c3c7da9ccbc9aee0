import datasets
import numpy as np
import pytest
from datasets import ClassLabel, List, Value

from vit_hf.data.labels import encode_labels


def test_class_labels_keep_their_order():
    encoded = encode_labels(ClassLabel(names=["b", "a"]), {"train": [0, 1, 1], "test": [1]})
    assert encoded.problem_type == "single_label_classification"
    assert encoded.names == ["b", "a"]
    assert encoded.splits["train"].tolist() == [0, 1, 1]
    assert encoded.splits["train"].dtype == np.int64


def test_text_is_sorted_over_all_splits():
    encoded = encode_labels(Value("string"), {"train": ["dog", "ant"], "test": ["cat"]})
    assert encoded.names == ["ant", "cat", "dog"]
    assert encoded.splits["train"].tolist() == [2, 0]
    assert encoded.splits["test"].tolist() == [1]


def test_whole_numbers_are_classes_in_numeric_order():
    encoded = encode_labels(Value("int32"), {"train": [10, 9, 9]})
    assert encoded.names == ["9", "10"]
    assert encoded.splits["train"].tolist() == [1, 0, 0]


def test_booleans_are_classes():
    encoded = encode_labels(Value("bool"), {"train": [True, False]})
    assert encoded.names == ["False", "True"]
    assert encoded.splits["train"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "feature, column",
    [
        (List(ClassLabel(names=["a", "b", "c"])), [[0, 2], []]),
        (List(Value("string")), [["a", "c"], ["b"]]),
        (datasets.LargeList(Value("int64")), [[5, 7], [6]]),
    ],
)
def test_lists_are_multi_label(feature, column):
    encoded = encode_labels(feature, {"train": column})
    assert encoded.problem_type == "multi_label_classification"
    assert encoded.num_labels == 3
    assert encoded.splits["train"].dtype == np.float32
    assert encoded.splits["train"][0].tolist() == [1, 0, 1]


def test_floats_are_a_regression():
    encoded = encode_labels(Value("float64"), {"train": [0.5, 2.0]})
    assert (encoded.problem_type, encoded.num_labels, encoded.names) == ("regression", 1, [])
    assert encoded.splits["train"].shape == (2,)
    encoded = encode_labels(List(Value("float32")), {"train": [[0.5, 2.0]]})
    assert (encoded.problem_type, encoded.num_labels) == ("regression", 2)


def test_labels_are_encoded_as_the_models():
    label2id = {"cat": 0, "ant": 1, "dog": 2}
    encoded = encode_labels(ClassLabel(names=["ant", "dog"]), {"test": [0, 1]}, label2id)
    assert encoded.names == ["cat", "ant", "dog"]
    assert encoded.splits["test"].tolist() == [1, 2]


def test_generic_names_of_a_model_stand_for_the_datas_order():
    encoded = encode_labels(Value("string"), {"test": ["b", "a"]}, {"LABEL_0": 0, "LABEL_1": 1})
    assert encoded.splits["test"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "feature, column, label2id, message",
    [
        (ClassLabel(names=["a", "b"]), [0, -1], None, "row 1 of the train split has no label"),
        (Value("string"), ["a", None], None, "row 1 of the train split has no label"),
        (List(Value("int64")), [[1], [2, None]], None, "row 1 of the train split has no label"),
        (List(Value("int64")), [[0, 1, 1]], None, "names a class twice"),
        (Value("float32"), [1.0, float("nan")], None, "row 1 of the train split has no finite value"),
        (List(Value("float32")), [[1.0], [1.0, 2.0]], None, "differing or missing"),
        (Value("string"), ["a", "a"], None, "only one class, 'a'"),
        (Value("string"), ["a", "b"], {"a": 0, "c": 1}, "no class 'b'"),
        (Value("string"), ["a", "b", "c"], {"LABEL_0": 0, "LABEL_1": 1}, "no class 'a'"),
    ],
)
def test_refuses(feature, column, label2id, message):
    with pytest.raises(ValueError, match=message):
        encode_labels(feature, {"train": column}, label2id)


def test_refuses_what_is_no_label():
    with pytest.raises(TypeError, match="holds no labels"):
        encode_labels(datasets.Image(), {"train": []})
