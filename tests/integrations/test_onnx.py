"""ONNX: what ONNX Runtime computes is what the model computes, for every selector, reducer and encoding."""

import pytest
import torch

from tests.helpers.models import SELECTIONS, cut, tiny_config
from vit_hf import POSITION_ENCODINGS, AdaptiveViTForImageClassification


for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="pip install vit_hf[export]")

from transformers.exporters import OnnxConfig, OnnxExporter  # noqa: E402
from transformers.exporters.base import ExportedModel  # noqa: E402


def textured(batch_size: int) -> torch.Tensor:
    """Images whose patches have contrasts far apart, so that rounding does not decide which are kept."""
    contrast = torch.stack([torch.randperm(64) for _ in range(batch_size)]).view(-1, 1, 8, 1, 8, 1)
    noise = torch.randn(batch_size, 3, 8, 8, 8, 8)
    return (noise * (contrast + 1) / 200).flatten(4).flatten(2, 3)


def export(model, folder, inputs: dict) -> ExportedModel:
    """Saved, and loaded again by ONNX Runtime."""
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {name: {0: batch} for name in inputs}
    OnnxExporter().export(model, inputs, OnnxConfig(dynamic_shapes=shapes)).save_pretrained(folder)
    return ExportedModel.from_pretrained(folder, device="cpu")


def compare(exported: ExportedModel, model, inputs: dict) -> None:
    with torch.no_grad():
        expected = model(**inputs)
    got = exported(**inputs)
    assert torch.equal(got.selected_patches, expected.selected_patches)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-4)


def cases():
    for name, fields in SELECTIONS.items():
        # A selection with a thumbnail that goes along: one of them for every day.
        yield pytest.param(fields, id=name, marks=() if name == "context" else pytest.mark.slow)
    for name in POSITION_ENCODINGS:
        yield pytest.param({"position_encoding": name}, id=name, marks=pytest.mark.slow)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("fields", list(cases()))
def test_equals_the_model(fields, tmp_path):
    model = AdaptiveViTForImageClassification(tiny_config(**fields, num_register_tokens=1)).eval()
    exported = export(model, tmp_path, {"pixel_values": textured(2)})
    for batch_size in (1, 2, 5):
        compare(exported, model, {"pixel_values": textured(batch_size)})


@pytest.mark.slow
def test_ties_go_to_the_first_there_as_well(tmp_path):
    """A flat image has no best patch, and ONNX's sort no `stable`."""
    model = AdaptiveViTForImageClassification(tiny_config(patch_selector="variance")).eval()
    exported = export(model, tmp_path, {"pixel_values": textured(2)})
    compare(exported, model, {"pixel_values": torch.zeros(3, 3, 64, 64)})


@pytest.mark.slow
def test_of_patches_that_the_image_processor_kept(tmp_path):
    model = AdaptiveViTForImageClassification(tiny_config()).eval()
    inputs = {
        name: values for name, values in cut(list(textured(2))).items() if name != "pixel_attention_mask"
    }
    exported = export(model, tmp_path, inputs)
    compare(exported, model, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["variance", "attention", "merge"])
def test_by_torch_alone(name, tmp_path):
    """`torch.onnx.export`, without transformers' exporter."""
    import onnxruntime

    model = AdaptiveViTForImageClassification(tiny_config(**SELECTIONS[name])).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model, (), path, kwargs={"pixel_values": textured(2)}, dynamic_shapes={"pixel_values": {0: batch}}
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = textured(3)
    logits = torch.from_numpy(session.run(None, {"pixel_values": images.numpy()})[0])
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images).logits, atol=1e-5, rtol=1e-4)
