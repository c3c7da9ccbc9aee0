"""Static K makes static shapes: compiling and exporting must work for every selector and encoding."""

import pytest
import torch

from tests.helpers.models import SELECTIONS, SWINS, tiny_config, tiny_swin_config
from vit_hf import (
    POSITION_ENCODINGS,
    AdaptiveSwinForImageClassification,
    AdaptiveViTForImageClassification,
)


# Tracing takes seconds: one of each kind is traced every time, all of them by the slow tests.
SELECTIONS_OF_EACH_KIND = {
    "dense", "variance", "attention", "policy", "perturbed", "context", "attentive", "merge", "both_gumbel"
}  # fmt: skip
ENCODINGS_OF_EACH_KIND = {"sinusoidal_2d", "rotary", "relative_bias_continuous"}
SWINS_OF_EACH_KIND = {"swin_selected", "swinv2"}


def combinations():
    for selection in SELECTIONS:
        yield case(selection, "learned", is_slow=selection not in SELECTIONS_OF_EACH_KIND)
    for encoding in POSITION_ENCODINGS.keys() - {"learned"}:
        yield case("variance", encoding, is_slow=encoding not in ENCODINGS_OF_EACH_KIND)


def case(*values, is_slow):
    return pytest.param(*values, marks=[pytest.mark.slow] * is_slow, id="-".join(map(str, values)))


every_combination = pytest.mark.parametrize(
    ("selection", "encoding"), sorted(combinations(), key=lambda one: one.id)
)
every_swin = pytest.mark.parametrize(
    "swin", [case(name, is_slow=name not in SWINS_OF_EACH_KIND) for name in SWINS]
)


def make(selection, encoding):
    config = tiny_config(**SELECTIONS[selection], position_encoding=encoding, num_register_tokens=1)
    return AdaptiveViTForImageClassification(config).eval()


@every_combination
def test_compile_fullgraph(selection, encoding):
    torch.compiler.reset()
    model = make(selection, encoding)
    images = torch.randn(2, 3, 64, 64)
    # The graph is what is tested; generating C++ for it would take minutes.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).logits, model(images).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["variance", "attention", "attentive", "merge"])
def test_compile_with_inductor(selection):
    torch.compiler.reset()
    model = make(selection, "learned")
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).logits, model(images).logits, atol=1e-4, rtol=1e-4)


def test_compiled_training_step():
    torch.compiler.reset()
    model = make("variance", "learned").train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 2])
    loss = compiled(images, labels=labels).loss
    torch.testing.assert_close(loss, model(images, labels=labels).loss)
    loss.backward()
    assert model.vit.embeddings.cls_token.grad is not None


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values).logits


@every_swin
def test_compile_windows_fullgraph(swin):
    torch.compiler.reset()
    model = AdaptiveSwinForImageClassification(tiny_swin_config(**SWINS[swin])).eval()
    images = torch.randn(2, 3, 64, 56)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).logits, model(images).logits, atol=1e-5, rtol=1e-5)


@every_combination
def test_export_with_dynamic_batch(selection, encoding):
    check_export(make(selection, encoding))


@every_swin
def test_export_windows_with_dynamic_batch(swin):
    check_export(AdaptiveSwinForImageClassification(tiny_swin_config(**SWINS[swin])).eval())


def check_export(model):
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        Logits(model), (torch.randn(2, 3, 64, 64),), dynamic_shapes={"pixel_values": {0: batch}}
    )
    for size in (1, 5):
        images = torch.randn(size, 3, 64, 64)
        torch.testing.assert_close(exported.module()(images), model(images).logits, atol=1e-5, rtol=1e-5)
