"""LoRA of `peft`: trained with Trainer, saved, loaded, merged."""

import pytest
import torch
from safetensors import safe_open
from transformers import Trainer, TrainingArguments

from tests.helpers.models import SELECTIONS, tiny_config
from tests.helpers.trainers import Images
from vit_hf import AdaptiveViTForImageClassification


peft = pytest.importorskip("peft", reason="pip install peft")

# What has parameters of its own learns them whole, beside the adapters of the pretrained attention.
SAVED = {
    **{name: ["classifier"] for name in ("dense", "variance", "attention", "merge")},
    **{name: ["classifier", "selector"] for name in ("distilled", "policy", "perturbed")},
    "gumbel": ["classifier", "reducers.0", "reducers.1"],
}


def cases():
    fast = ("attention", "distilled", "gumbel")
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in SAVED]


@pytest.mark.parametrize("name", list(cases()))
def test_trained_saved_loaded_and_merged(name, tmp_path):
    AdaptiveViTForImageClassification(tiny_config(**SELECTIONS[name])).save_pretrained(tmp_path / "base")
    base = AdaptiveViTForImageClassification.from_pretrained(tmp_path / "base")
    before = {key: value.clone() for key, value in base.state_dict().items()}
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=SAVED[name])
    model = peft.get_peft_model(base, lora)
    args = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=4,
        learning_rate=5e-2,
        per_device_train_batch_size=4,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model, args, train_dataset=Images()).train()
    trained = model.eval()
    for key, value in trained.get_base_model().state_dict().items():
        key = key.replace("base_layer.", "").replace("original_module.", "")
        if key in before:
            assert torch.equal(value, before[key]), key
    own = [key for key in trained.state_dict() if "modules_to_save" in key]
    assert {part for part in SAVED[name] if any(part in key for key in own)} == set(SAVED[name])
    for key in own:
        if key.endswith("weight") and "norm" not in key:
            path, parameter = key.split(".modules_to_save.default.")
            origin = f"{path.removeprefix('base_model.model.')}.{parameter}"
            assert not torch.equal(trained.state_dict()[key], before[origin]), key

    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = trained(pixel_values=images)
        assert not torch.allclose(expected.logits, base_logits(tmp_path / "base", images), atol=1e-2)
    trained.save_pretrained(tmp_path / "adapter")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "mlp" in key]  # noqa: SIM118

    again = AdaptiveViTForImageClassification.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(again(pixel_values=images).logits, expected.logits)
        again.merge_and_unload().save_pretrained(tmp_path / "merged")
        merged, info = AdaptiveViTForImageClassification.from_pretrained(
            tmp_path / "merged", output_loading_info=True
        )
        assert not any(info.values())
        torch.testing.assert_close(
            merged.eval()(pixel_values=images).logits, expected.logits, atol=1e-4, rtol=1e-4
        )


def base_logits(path, images: torch.Tensor) -> torch.Tensor:
    return AdaptiveViTForImageClassification.from_pretrained(path).eval()(images).logits
