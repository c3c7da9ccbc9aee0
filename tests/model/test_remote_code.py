"""A saved model works where this package is not installed, by `trust_remote_code=True`."""

import pytest
import torch

from tests.helpers.models import tiny_config
from tests.helpers.remote_code import run_elsewhere
from vit_hf import (
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint, an input and the logits it must give."""
    path = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    config = tiny_config(
        patch_selector="attention",
        position_encoding="learned",
        id2label={index: f"class {index}" for index in range(5)},
    )
    model = AdaptiveViTForImageClassification(config).eval()
    model.save_pretrained(path)
    AdaptiveViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(path)
    images = torch.randn(2, 3, 64, 64)
    torch.save({"images": images, "logits": model(images).logits.detach()}, path / "expected.pt")
    return path


def test_every_auto_class_without_the_package(saved, tmp_path):
    out = run_elsewhere(
        f"""
        import torch
        from transformers import (
            AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
        )
        path = {str(saved)!r}
        expected = torch.load(path + "/expected.pt")
        model = AutoModelForImageClassification.from_pretrained(path, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        torch.testing.assert_close(model(expected["images"]).logits, expected["logits"], atol=0, rtol=0)
        base = AutoModel.from_pretrained(path, trust_remote_code=True)
        torch.testing.assert_close(
            base(expected["images"]).last_hidden_state, model.vit(expected["images"]).last_hidden_state
        )
        config = AutoConfig.from_pretrained(path, trust_remote_code=True)
        assert config.model_type == "adaptive_vit" and config.patch_selector == {{"type": "attention", "num_layers": 2}}
        processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=True)
        from PIL import Image
        classify = pipeline("image-classification", model=path, trust_remote_code=True)
        print(classify(Image.new("RGB", (90, 70), "red"))[0]["label"])
        """,  # noqa: E501
        tmp_path,
    )
    assert out.strip().startswith("class ")


def test_without_the_package_it_is_not_loaded_unasked(saved, tmp_path):
    out = run_elsewhere(
        f"""
        from transformers import AutoImageProcessor, AutoModel
        for auto_class in (AutoModel, AutoImageProcessor):
            for trust in (False, None):
                try:
                    auto_class.from_pretrained({str(saved)!r}, trust_remote_code=trust)
                except ValueError as error:
                    print("refused" if "trust_remote_code" in str(error) else error)
        import sys
        print(any(name.startswith("transformers_modules.") for name in sys.modules))
        """,
        tmp_path,
    )
    assert [line for line in out.splitlines() if "[y/N]" not in line][-1] == "False"
    assert out.count("refused") == 4


def test_with_the_package_imported_no_remote_code_is_needed(saved, tmp_path):
    out = run_elsewhere(
        f"""
        import torch, vit_hf
        from transformers import AutoImageProcessor, AutoModelForImageClassification
        path = {str(saved)!r}
        expected = torch.load(path + "/expected.pt")
        model = AutoModelForImageClassification.from_pretrained(path)
        assert type(model) is vit_hf.AdaptiveViTForImageClassification
        torch.testing.assert_close(model(expected["images"]).logits, expected["logits"], atol=0, rtol=0)
        assert type(AutoImageProcessor.from_pretrained(path)) is vit_hf.AdaptiveViTImageProcessor
        print("equal")
        """,
        tmp_path,
        installed=True,
    )
    assert out.strip() == "equal"


def test_stock_checkpoints_load_through_remote_code(saved, tmp_path):
    """The renaming of old keys travels with the code."""
    from transformers import ViTForImageClassification

    from tests.helpers.models import stock

    reference = stock()
    assert isinstance(reference, ViTForImageClassification)
    reference.save_pretrained(tmp_path / "stock")
    images = torch.randn(1, 3, 32, 32)
    torch.save(
        {"images": images, "logits": reference(images).logits.detach()}, tmp_path / "stock" / "expected.pt"
    )
    run_elsewhere(
        f"""
        import torch
        from transformers.dynamic_module_utils import get_class_from_dynamic_module
        model_class = get_class_from_dynamic_module(
            "modeling_adaptive_vit.AdaptiveViTForImageClassification", {str(saved)!r}
        )
        path = {str(tmp_path / "stock")!r}
        expected = torch.load(path + "/expected.pt")
        model, info = model_class.from_pretrained(path, output_loading_info=True)
        assert not any(info.values()), info
        torch.testing.assert_close(model(expected["images"]).logits, expected["logits"], atol=1e-5, rtol=1e-5)
        """,
        tmp_path,
    )


@pytest.mark.slow
def test_a_model_loaded_from_remote_code_saves_its_code_again(saved, tmp_path):
    run_elsewhere(
        f"""
        import torch
        from transformers import AutoModelForImageClassification
        model = AutoModelForImageClassification.from_pretrained({str(saved)!r}, trust_remote_code=True)
        model.save_pretrained({str(tmp_path / "again")!r})
        again = AutoModelForImageClassification.from_pretrained({str(tmp_path / "again")!r}, trust_remote_code=True)
        images = torch.randn(1, 3, 64, 64)
        assert torch.equal(model(images).logits, again(images).logits)
        """,  # noqa: E501
        tmp_path,
    )
    name = "modeling_adaptive_vit.py"
    assert [path.name for path in (tmp_path / "again").glob("*.py")] == [name]
    assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()
