"""Dynamic int8 quantisation by `torchao`."""

import pytest
import torch
from transformers import TorchAoConfig

from tests.helpers.models import every_selection, tiny_config
from vit_hf import AdaptiveViTForImageClassification


quantization = pytest.importorskip("torchao.quantization", reason="pip install torchao")


def quantised_weights(model) -> list[torch.nn.Linear]:
    """The linear layers with weights of eight bits, which really are kept as such."""
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    quantised = [layer for layer in layers if hasattr(layer.weight, "qdata")]
    assert all(layer.weight.qdata.dtype == torch.int8 for layer in quantised)
    return quantised


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@every_selection
def test_int8_dynamic(selection):
    model = AdaptiveViTForImageClassification(tiny_config(**selection, initializer_range=0.05)).eval()
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
        # Four projections of attention and two of the feed-forward network in each of three blocks, and the
        # head.
        assert len(quantised_weights(model)) >= 3 * 6 + 1
        # With the same patches: which of two alike patches is kept may well hang on a rounding.
        chosen = {} if expected.selected_patches is None else {"selected_patches": expected.selected_patches}
        if "token_reducer" not in selection:
            error = relative_error(model(images, **chosen).logits, expected.logits)
            assert 0 < error < 0.05
        assert model(images).logits.isfinite().all()


def test_by_from_pretrained(tmp_path):
    config = tiny_config(patch_selector="attention", initializer_range=0.05)
    model = AdaptiveViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "float")
    images = torch.randn(4, 3, 64, 64)
    quantised = AdaptiveViTForImageClassification.from_pretrained(
        tmp_path / "float",
        quantization_config=TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig()),
    )
    assert len(quantised_weights(quantised)) >= 3 * 6
    with torch.no_grad():
        expected = model(images)
        got = quantised(images, selected_patches=expected.selected_patches).logits
    assert 0 < relative_error(got, expected.logits) < 0.05

    quantised.save_pretrained(tmp_path / "int8")
    again = AdaptiveViTForImageClassification.from_pretrained(tmp_path / "int8")
    assert len(quantised_weights(again)) == len(quantised_weights(quantised))
    with torch.no_grad():
        assert torch.equal(again(images).logits, quantised(images).logits)
