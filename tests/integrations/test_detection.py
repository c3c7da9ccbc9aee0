"""AdaptiveViT under transformers' detectors."""

import pytest
import torch
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    ConditionalDetrImageProcessor,
    DabDetrConfig,
    DabDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
)

from tests.helpers.models import tiny_config


ops = pytest.importorskip("torchvision.ops", reason="pip install torchvision")
pytest.importorskip("scipy", reason="transformers matches boxes with it")

# Detectors that take one map, or make the others from the last; RT-DETR and its kin want three of falling
# size.
DETECTORS = {
    "detr": (DetrConfig, DetrForObjectDetection, DetrImageProcessor),
    "conditional_detr": (
        ConditionalDetrConfig,
        ConditionalDetrForObjectDetection,
        ConditionalDetrImageProcessor,
    ),
    # The same outputs as ConditionalDetr's, and no image processor of its own.
    "dab_detr": (DabDetrConfig, DabDetrForObjectDetection, ConditionalDetrImageProcessor),
    "deformable_detr": (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        DeformableDetrImageProcessor,
    ),
}
SELECTIONS = {
    "dense": {},
    "saliency": {"patch_selector": "saliency", "num_selected_patches": 32},
    "attentive": {"token_reducer": "attentive", "keep_rate": 0.7, "reduction_layers": [1]},
}


def make(name: str, **fields):
    config_class, model_class, processor_class = DETECTORS[name]
    backbone = tiny_config(initializer_range=0.05, **fields)
    size = "hidden_size" if name == "dab_detr" else "d_model"
    config = config_class(
        backbone_config=backbone,
        **{size: 32},
        num_labels=2,
        num_queries=4,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        dropout=0.0,
    )
    return model_class(config), processor_class(do_resize=False, do_pad=False)


def scene() -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Two images with a bright box each, and their labels: class, and centre, width, height in 0..1."""
    images = 0.1 * torch.randn(2, 3, 64, 64)
    images[0, :, 8:40, 16:32] += 2
    images[1, :, 32:56, 24:64] += 2
    boxes = [[24 / 64, 24 / 64, 16 / 64, 32 / 64], [44 / 64, 44 / 64, 40 / 64, 24 / 64]]
    labels = [
        {"class_labels": torch.tensor([index]), "boxes": torch.tensor([box])}
        for index, box in enumerate(boxes)
    ]
    return images, labels


def cases():
    for name in DETECTORS:
        for selection in SELECTIONS:
            fast = (name, selection) == ("detr", "saliency")
            yield pytest.param(name, selection, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(("name", "selection"), list(cases()))
def test_detects_what_it_was_shown(name, selection, tmp_path):
    model, processor = make(name, **SELECTIONS[selection])
    images, labels = scene()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        loss = model(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(value.grad is not None for value in model.model.backbone.parameters())
    model.eval()
    with torch.no_grad():
        outputs = model(images)
    answers = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(128, 64)] * 2)
    for answer, label in zip(answers, labels, strict=True):
        best = answer["scores"].argmax()
        assert answer["labels"][best] == label["class_labels"][0]
        expected = ops.box_convert(label["boxes"], "cxcywh", "xyxy") * torch.tensor([64, 128, 64, 128])
        assert ops.box_iou(answer["boxes"][best, None], expected).item() > 0.5

    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(images).pred_boxes, outputs.pred_boxes)
