import numpy as np
from huggingface_hub import EvalResult, ModelCard

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTForVideoClassification
from vit_hf.hub.model_card import make_model_card


def test_card_tells_what_the_model_is(tmp_path):
    config = tiny_config(patch_selector="variance", num_selected_patches=0.25, num_labels=2)
    config.id2label = {0: "cat", 1: "dog"}
    result = EvalResult(
        task_type="image-classification",
        dataset_type="imagefolder",
        dataset_name="My photographs",
        metric_type="accuracy",
        metric_value=0.9,
    )
    card = make_model_card(
        AdaptiveViTForImageClassification(config),
        model_name="my-model",
        summary="Tells cats from dogs.",
        results="| accuracy |\n|---|\n| 90 % |",
        limitations="No birds.",
        training_arguments={
            "learning_rate": 0.01,
            "layer_decay": 1.0,
            "fp16": False,
            "hub_token": "hf_secret",
        },
        eval_results=[result],
    )
    card.save(tmp_path / "README.md")
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.eval_results[0].metric_value == 0.9
    assert read.data.eval_results[0].dataset_name == "My photographs"
    assert read.data.model_name == "my-model" and read.data.pipeline_tag == "image-classification"
    for words in (
        "`variance` keeps 25.0% of the patches, by the model",
        "cat, dog",
        "8x8 pixels",
        "Tells cats",
        "| 90 % |",
        "No birds.",
    ):
        assert words in read.text
    assert "| `learning_rate` | 0.01 |" in read.text
    for words in ("layer_decay", "fp16", "hf_secret"):
        assert words not in read.text
    assert "{{" not in read.text and "![" not in read.text


def test_card_of_a_model_of_videos():
    config = tiny_config(num_frames=4, num_labels=2, patch_selector="motion", num_selected_patches=4)
    text = make_model_card(AdaptiveViTForVideoClassification(config), model_name="clips").content
    for words in (
        "pipeline_tag: video-classification",
        "A Vision Transformer of `vit_hf` that classifies videos into 2 classes.",
        "8x8 pixels in 2 frames",
        "| classes |",
        "AutoModelForVideoClassification.from_pretrained(name, trust_remote_code=True)",
        "pixel_values = torch.rand(1, 4, 3, 224, 224)",
        "print(model.config.id2label[",
        "`vit_hf.explain_video`",
    ):
        assert words in text
    assert "PIL" not in text and "{%" not in text


def test_metrics_of_numpy_and_what_is_no_number():
    metrics = {
        "eval_accuracy": np.float64(0.75),
        "eval_f1": np.float32(0.5),
        "eval_recall": np.nan,
        "eval_confusion": [[1, 2], [3, 4]],
        "eval_note": "good",
    }
    model = AdaptiveViTForImageClassification(tiny_config())
    card = make_model_card(model, model_name="numbers", dataset="me/birds", metrics=metrics)
    measured = {result.metric_type: result.metric_value for result in ModelCard(str(card)).data.eval_results}
    assert measured == {"accuracy": 0.75, "f1": 0.5}
    assert "| accuracy | 0.7500 |" in card.text and "confusion" not in str(card)
