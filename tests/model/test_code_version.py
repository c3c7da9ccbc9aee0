"""A checkpoint with other code than is installed: a line says which of them runs."""

import json
import logging

import pytest
import torch
from transformers import AutoModelForImageClassification

from tests.helpers.models import tiny_config
from tests.helpers.remote_code import run_elsewhere
from vit_hf import AdaptiveViTForImageClassification, __version__
from vit_hf.model.checkpoint_code import installed_version, report_code


@pytest.fixture
def saved(tmp_path):
    AdaptiveViTForImageClassification(tiny_config()).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change(folder):
    """Its answers become 1 larger."""
    file = folder / "modeling_adaptive_vit.py"
    text = file.read_text()
    assert "return self.classifier(pooled)" in text
    file.write_text(text.replace("return self.classifier(pooled)", "return 1 + self.classifier(pooled)"))


def test_checkpoints_say_what_code_they_have(saved):
    version = json.loads((saved / "config.json").read_text())["vit_hf_version"]
    assert version == installed_version() and version.startswith(f"{__version__}+")
    assert f"vit_hf {version}" in (saved / "modeling_adaptive_vit.py").read_text().partition("\n")[0]


@pytest.mark.parametrize("trust", [True, False, None])
def test_installed_code_is_used_and_named(saved, trust, caplog):
    AutoModelForImageClassification.from_pretrained(saved, trust_remote_code=trust)
    assert "came with the code" not in caplog.text
    change(saved)
    images = torch.zeros(1, 3, 32, 32)
    model = AutoModelForImageClassification.from_pretrained(saved, trust_remote_code=trust)
    assert type(model) is AdaptiveViTForImageClassification
    assert torch.equal(
        model(images).logits, AdaptiveViTForImageClassification.from_pretrained(saved)(images).logits
    )
    [line] = [record.message for record in caplog.records if "came with the code" in record.message]
    assert f"{saved} came with the code of vit_hf {installed_version()}, with changes" in line
    assert f"the installed vit_hf {installed_version()} is used" in line


def test_on_the_hub_the_configuration_tells(caplog):
    report_code("me/same", {"vit_hf_version": installed_version()}, "modeling_adaptive_vit")
    report_code("google/vit", {}, "modeling_adaptive_vit")
    assert not caplog.records
    report_code("me/older", {"vit_hf_version": "0.0.9+00000000"}, "modeling_adaptive_vit")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "me/older came with the code of vit_hf 0.0.9+00000000" in record.message


@pytest.mark.slow
def test_code_of_the_checkpoint_is_used_and_named_where_the_package_is_not_imported(saved, tmp_path):
    script = f"""
        import sys
        sys.stderr = sys.stdout
        import torch
        from transformers import AutoModelForImageClassification
        model = AutoModelForImageClassification.from_pretrained({str(saved)!r}, trust_remote_code=True)
        with torch.no_grad():
            model.classifier.weight.zero_(), model.classifier.bias.zero_()
            print("logit", model(torch.zeros(1, 3, 32, 32)).logits[0, 0].item())
        """
    out = run_elsewhere(script, tmp_path, installed=True)
    assert "logit 0.0" in out and "came with" not in out
    change(saved)
    out = run_elsewhere(script, tmp_path, installed=True)
    assert "logit 1.0" in out
    assert f"The code that came with {saved}, of vit_hf {installed_version()}, with changes, is used" in out
