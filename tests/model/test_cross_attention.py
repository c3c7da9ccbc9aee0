"""Selection by a learned query's attention to patch embeddings."""

import pytest
import torch
from torch import nn

from tests.helpers.models import cut, tiny_config, tiny_selector
from tests.helpers.selection import batch, learn
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTModel
from vit_hf.model.patches import ImagePatches
from vit_hf.model.selection import PatchSelector
from vit_hf.model.selectors import CrossAttentionSelector


def test_scores_by_hand():
    model = AdaptiveViTModel(tiny_config(patch_selector="cross_attention")).eval()
    selector, images = model.selector, torch.randn(2, 3, 32, 32)
    embedded = model.embeddings(ImagePatches.from_images(images, 8)).hidden_states[:, 1:]
    keys = selector.key(nn.functional.gelu(selector.hidden(selector.norm(embedded))))
    heads, size = selector.query.shape
    products = (keys * selector.query.flatten()).unflatten(-1, (heads, size)).sum(-1)
    attention = (products / size**0.5).flatten(1).softmax(-1).view_as(products).mean(-1)  # (B, N)
    scores = model(images).patch_scores
    torch.testing.assert_close(scores.softmax(-1), attention / attention.sum(-1, keepdim=True))


def test_weights_are_the_attention_over_what_was_kept():
    model = AdaptiveViTModel(tiny_config(patch_selector="cross_attention")).eval()
    nn.init.normal_(model.selector.key.weight, std=2.0)  # attends to little
    inputs = cut([torch.randn(3, 48, 48), torch.randn(3, 8, 32)])  # 36 and 4 patches
    outputs = model(**inputs)
    assert outputs.patch_mask.sum(1).tolist() == [6, 4]
    for image, number in enumerate((6, 4)):
        scores = outputs.patch_scores[image, outputs.selected_patches[image, :number]]
        weights = outputs.token_sizes[image]
        torch.testing.assert_close(weights[:number], number * scores.softmax(-1))
        assert weights.max() > 1.2 and (weights[number:] == 0).all()


@pytest.mark.parametrize("pooling", ["cls", "mean", "map"])
def test_gradients_of_the_scores(pooling):
    """Had by differences, of the loss by the scores of what was kept."""
    fields = {"patch_selector": "cross_attention", "pooling": pooling}
    model = AdaptiveViTForImageClassification(tiny_config(**fields)).double().train()
    images, labels = torch.randn(2, 3, 48, 48, dtype=torch.double), torch.tensor([1, 2])
    kept = model(images).selected_patches
    scores = torch.randn(2, 6, dtype=torch.double, requires_grad=True)
    model.vit.selector.attend = lambda embeddings: scores

    def loss() -> torch.Tensor:
        return model(images, labels=labels, selected_patches=kept).loss

    (gradient,) = torch.autograd.grad(loss(), scores)
    direction, step = torch.randn_like(gradient), 1e-5
    with torch.no_grad():
        scores += step * direction
        above = loss()
        scores -= 2 * step * direction
        slope = (above - loss()) / (2 * step)
    assert (gradient.abs() > 1e-6).all()
    torch.testing.assert_close((gradient * direction).sum(), slope, atol=1e-7, rtol=1e-3)


def test_no_graph_of_the_patches_that_were_not_kept():
    model = AdaptiveViTForImageClassification(tiny_config(patch_selector="cross_attention")).train()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda value: saved.append(value.shape) or value, lambda value: value
    ):
        model(torch.randn(1, 3, 136, 136), labels=torch.tensor([1]))
    assert saved and not any(17 * 17 in shape for shape in saved)


def test_learns_together_with_the_encoder_what_to_attend_to(monkeypatch):
    """One of sixteen patches of noise tells the label; four are kept, half of them at random in training."""

    def accuracy() -> float:
        torch.manual_seed(1)
        sizes = {"num_channels": 1, "num_labels": 2, "num_hidden_layers": 2, "initializer_range": 0.1}
        fields = {
            "patch_selector": tiny_selector("cross_attention", exploration=0.5),
            "num_selected_patches": 4,
        }
        model = AdaptiveViTForImageClassification(tiny_config(**sizes, **fields))
        learn(model, model.parameters(), 200)
        images, labels, _ = batch(300)
        return (model(images).logits.argmax(-1) == labels).float().mean().item()

    assert accuracy() > 0.95
    monkeypatch.setattr(CrossAttentionSelector, "token_weights", PatchSelector.token_weights)
    assert accuracy() < 0.75  # where no gradient reaches the query
