from huggingface_hub import EvalResult, ModelCard

from tests.conftest import tiny_config
from vit_hf import AdaptiveViTForImageClassification
from vit_hf.model_card import make_model_card


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
