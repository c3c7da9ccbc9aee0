"""The convolutional patch embedding: each patch goes through a CNN by itself."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification

from tests.helpers.models import SELECTIONS, cut, every_selection, tiny_config
from tests.helpers.remote_code import run_elsewhere
from vit_hf import (
    PATCH_SELECTORS,
    POSITION_ENCODINGS,
    AdaptiveViTBackbone,
    AdaptiveViTConfig,
    AdaptiveViTForImageClassification,
    AdaptiveViTForMaskedImageModeling,
    AdaptiveViTImageProcessor,
    predict_streaming,
)
from vit_hf.arguments import ModelArguments
from vit_hf.checkpoints.families import CannotConvert
from vit_hf.checkpoints.loading import part_of
from vit_hf.checkpoints.plain import to_transformers
from vit_hf.model import patch_embeddings
from vit_hf.model.patches import ImagePatches
from vit_hf.training.model_loading import make_image_processor


CNN = {"type": "convolutional", "hidden_sizes": [8, 16], "depths": [1, 2], "num_groups": 4}


def make(model_class=AdaptiveViTForImageClassification, **fields):
    return model_class(tiny_config(**{"patch_embedding": CNN, **fields})).eval()


def stem_of(model) -> patch_embeddings.ConvolutionalPatchEmbeddings:
    return getattr(model, "vit", model).embeddings.patch_embeddings


def count_patches(model) -> list[int]:
    """A list that grows by how many patches each pass through the CNN reads."""
    read = []
    stem_of(model).stem.register_forward_hook(lambda module, inputs, output: read.append(len(inputs[0])))
    return read


def test_is_the_first_half_of_resnet18():
    """By default: with group norms and standardized filters torchvision's computes the same."""
    from torchvision.models import resnet18

    stem = stem_of(make(patch_embedding="convolutional"))
    resnet = resnet18(norm_layer=lambda channels: nn.GroupNorm(32, channels)).eval()
    theirs = nn.Sequential(
        resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, resnet.layer1, resnet.layer2
    )
    ours = [*stem.stem.parameters(), *stem.blocks.parameters()]
    for value, other in zip(ours, theirs.parameters(), strict=True):
        assert value.shape == other.shape
        other.data = value.data
        if value.ndim == 4:
            spread = value.std(dim=(1, 2, 3), correction=0, keepdim=True)
            other.data = ((value - value.mean(dim=(1, 2, 3), keepdim=True)) / spread).detach()
    patches = ImagePatches.from_images(torch.randn(2, 3, 16, 24), 8)
    cells = theirs(patches.gather().features.unflatten(2, (3, 8, 8)).flatten(0, 1))
    expected = stem.projection(cells.mean(dim=(2, 3)).unflatten(0, (2, 6)))
    torch.testing.assert_close(stem(patches).features, expected, atol=1e-4, rtol=1e-4)


def test_a_plain_background_is_nothing():
    """However bright it is, what is on it is read alike."""
    convolution = stem_of(make()).stem[0]
    images = torch.zeros(2, 3, 50, 50)
    images[1] = 5
    images[:, :, 20:30, 20:30] += torch.rand(3, 10, 10)
    dark, bright = convolution(images)[:, :, 2:-2, 2:-2]  # but for the border
    assert dark.abs().max() > 1
    torch.testing.assert_close(dark, bright, atol=1e-2, rtol=0)


@pytest.mark.parametrize("patch_size", [8, 50, [6, 13]])
def test_each_patch_is_read_alone(patch_size):
    stem = stem_of(make(patch_size=patch_size, image_size=64, encoder_stride=8))
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    images = torch.randn(2, 3, 3 * height + 2, 4 * width + 1)
    patches = ImagePatches.from_images(images, patch_size)
    every = stem(patches)
    assert every.features.shape == (2, 12, 32) and every.full_grid == (3, 4)
    chosen = torch.tensor([[0, 7, 11], [5, 4, 1]])
    some = stem(patches, chosen)
    torch.testing.assert_close(
        some.features, every.features[torch.arange(2)[:, None], chosen], atol=1e-5, rtol=1e-5
    )
    assert some.full_grid is None
    # Patch (1, 3) of the second image, alone in a batch.
    alone = images[1:, :, height : 2 * height, 3 * width : 4 * width]
    lone = stem(ImagePatches.from_images(alone, patch_size)).features
    torch.testing.assert_close(lone[0, 0], every.features[1, 7], atol=1e-5, rtol=1e-5)


def test_means_of_patches_are_means_of_pixels():
    stem, images = stem_of(make()), torch.randn(2, 3, 32, 32)
    patches = ImagePatches.from_images(images, 8)
    weights = torch.zeros(2, 2, 16)
    weights[:, 0, 3] = 1
    weights[:, 1, [0, 2]] = 0.5
    mixed, every = stem(patches, weights=weights), stem(patches)
    torch.testing.assert_close(mixed.features[:, 0], every.features[:, 3], atol=1e-5, rtol=1e-5)
    between = (images[..., :8, :8] + images[..., :8, 16:24]) / 2
    expected = stem(ImagePatches.from_images(between, 8)).features[:, 0]
    torch.testing.assert_close(mixed.features[:, 1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "patches"),
    [
        ({}, 64),
        ({"patch_selector": "variance"}, 6),
        ({"patch_selector": "random", "num_selected_patches": 0.25}, 16),
        ({"patch_selector": "perturbed"}, 6),
        ({"patch_selector": "variance", "thumbnail_context": True}, 6 + 16),
        ({"patch_selector": "attention"}, 6 + 16),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_costs_by_the_patches_kept(fields, patches, training):
    model = make(**fields).train(training)
    read = count_patches(model)
    model(torch.randn(2, 3, 64, 64))
    assert sum(read) == 2 * patches


def test_memory_without_a_gradient_is_that_of_a_part(monkeypatch):
    model, images = make(), torch.randn(2, 3, 40, 64)
    expected = model(images).logits
    monkeypatch.setattr(patch_embeddings, "CHUNK", 32)
    read = count_patches(model)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, expected, atol=1e-5, rtol=1e-5)
    assert read == [32, 32, 16]


@every_selection
def test_every_selection(selection):
    model = make(**selection)
    images = torch.randn(2, 3, 64, 48)
    output = model(images)
    if selection.get("patch_selector"):
        again = model(images, selected_patches=output.selected_patches)
        torch.testing.assert_close(again.logits, output.logits, atol=1e-5, rtol=1e-5)
        others = (output.selected_patches + 1) % 48
        assert not torch.allclose(model(images, selected_patches=others).logits, output.logits, atol=1e-4)
    model.train()
    model(images, labels=torch.tensor([1, 2])).loss.backward()
    for name, value in stem_of(model).named_parameters():
        assert value.grad is not None and value.grad.abs().sum() > 0, name


@pytest.mark.parametrize("encoding", POSITION_ENCODINGS)
def test_every_encoding(encoding):
    model = make(position_encoding=encoding, pooling="mean", patch_selector="variance")
    images, other = torch.randn(1, 3, 48, 64), torch.randn(1, 3, 48, 64)
    assert not torch.allclose(model(images).logits, model(other).logits, atol=1e-3)


@pytest.mark.parametrize("selector", [None, "variance", "attention"])
def test_cut_patches_of_mixed_sizes(selector):
    model = make(patch_selector=selector)
    images = [torch.randn(3, 40, 64), torch.randn(3, 32, 24), torch.randn(3, 64, 16)]
    output = model(**cut(images))
    for index, image in enumerate(images):
        alone = model(image[None])
        torch.testing.assert_close(output.logits[index], alone.logits[0], atol=1e-5, rtol=1e-5)


def test_patches_that_the_data_loader_selected():
    model = make(patch_selector="variance")
    arguments = ModelArguments(return_patches=True, native_resolution=True)
    processor = make_image_processor(arguments, model.config)
    assert processor.patch_selector == "variance"
    image = torch.randint(0, 255, (3, 64, 80), dtype=torch.uint8)
    whole = AdaptiveViTImageProcessor(patch_size=8, do_resize=False)(image, return_tensors="pt")
    selected = processor(image, return_tensors="pt")
    assert selected["pixel_values"].shape == (1, 6, 8 * 8 * 3)
    torch.testing.assert_close(model(**selected).logits, model(**whole).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PATCH_SELECTORS)
def test_streaming(name):
    model = make(patch_selector=name)
    processor = AdaptiveViTImageProcessor(patch_size=8, do_resize=False)
    image = np.random.default_rng(0).integers(0, 255, (70, 85, 3), np.uint8)
    with torch.no_grad():
        whole = model(**processor(image, return_tensors="pt"))
    streamed = predict_streaming(model, image, image_processor=processor)
    torch.testing.assert_close(streamed.logits, whole.logits, atol=1e-5, rtol=1e-5)


def test_masked_image_modeling():
    model = make(AdaptiveViTForMaskedImageModeling).train()
    output = model(torch.randn(2, 3, 48, 32), bool_masked_pos=torch.rand(2, 24) < 0.5)
    assert output.reconstruction.shape == (2, 3, 48, 32)
    output.loss.backward()
    assert all(value.grad.abs().sum() > 0 for value in stem_of(model).parameters())


def test_feature_maps_of_the_full_grid():
    model = make(AdaptiveViTBackbone, patch_selector="variance", out_features=["stem", "stage3"])
    stem, last = model(torch.randn(2, 3, 48, 64)).feature_maps
    assert stem.shape == last.shape == (2, 32, 6, 8)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    plain = make(patch_selector="variance").train()
    saving = copy.deepcopy(plain)
    enable = getattr(saving, "activation_checkpointing_enable", saving.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    assert all(block.gradient_checkpointing for block in stem_of(saving).blocks)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 3])
    for model in (plain, saving):
        model(images, labels=labels).loss.backward()
    for (name, value), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(value.grad, other.grad, msg=name)


def test_half_precision():
    model = make(patch_selector="variance")
    images = torch.randn(2, 3, 64, 70)
    half = copy.deepcopy(model).bfloat16()(images).logits
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), model(images).logits, atol=0.3, rtol=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(images, labels=torch.tensor([0, 1])).loss)


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values).logits


@pytest.mark.parametrize("selection", ["dense", "perturbed"])
def test_exports_with_dynamic_batch_and_compiles(selection):
    model = make(**SELECTIONS[selection])
    batch = torch.export.Dim("batch", min=1, max=64)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        exported = torch.export.export(
            Logits(model), (torch.randn(2, 3, 64, 64),), dynamic_shapes={"pixel_values": {0: batch}}
        )
        torch.testing.assert_close(exported.module()(images), model(images).logits, atol=1e-5, rtol=1e-5)
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images).logits, model(images).logits, atol=1e-5, rtol=1e-5)


def test_saves_and_loads(tmp_path):
    model = make(patch_selector="variance")
    model.save_pretrained(tmp_path)
    again, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model) and not any(info.values())
    images = torch.randn(2, 3, 40, 32)
    assert torch.equal(model(images).logits, again(images).logits)
    again.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
    with torch.device("meta"):
        empty = AdaptiveViTForImageClassification(model.config)
    assert all(value.is_meta for value in empty.state_dict().values()) and list(empty.buffers()) == []


def test_for_a_checkpoint_without(tmp_path):
    plain = AdaptiveViTForImageClassification(tiny_config())
    plain.save_pretrained(tmp_path)
    # Fresh memory often holds zeros: fill it with something that shows.
    junk = [torch.full((16, 16, 3, 3), 1e6) for _ in range(200)]
    del junk
    model = AdaptiveViTForImageClassification.from_pretrained(
        tmp_path, patch_embedding=CNN, ignore_mismatched_sizes=True
    )
    assert torch.equal(model.vit.layers[0].mlp.fc1.weight, plain.vit.layers[0].mlp.fc1.weight)
    for name, value in stem_of(model).state_dict().items():
        if value.ndim == 4 and "projection" not in name:
            fan_out = value.shape[0] * value[0, 0].numel()
            assert value.std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.2), name
        else:
            assert value.abs().max() < 10, name


@pytest.mark.slow
def test_loads_without_the_package(tmp_path):
    model = make(patch_selector="variance")
    model.save_pretrained(tmp_path / "saved")
    images = torch.randn(2, 3, 64, 64)
    torch.save({"images": images, "logits": model(images).logits.detach()}, tmp_path / "expected.pt")
    out = run_elsewhere(
        """
        import torch
        from transformers import AutoModelForImageClassification
        expected = torch.load("expected.pt")
        model = AutoModelForImageClassification.from_pretrained("saved", trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        torch.testing.assert_close(model(expected["images"]).logits, expected["logits"], atol=0, rtol=0)
        print(type(model.vit.embeddings.patch_embeddings).__name__)
        """,
        tmp_path,
    )
    assert out.strip() == "ConvolutionalPatchEmbeddings"


def test_is_part_of_the_backbone():
    model = make(patch_selector="perturbed")
    names = [name for name, _ in model.named_parameters() if ".blocks." in name]
    assert names and {part_of(model, name) for name in names} == {"backbone"}


def test_is_no_plain_vit():
    with pytest.raises(CannotConvert, match=r"patch_embedding=.*'convolutional'"):
        to_transformers(make())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_embedding": "cnn"}, "patch_embedding='cnn'.*'convolutional', 'linear'"),
        ({"patch_embedding": {**CNN, "hidden_sizes": []}}, r"hidden_sizes=\[\].*depths=\[1, 2\].*one length"),
        ({"patch_embedding": {**CNN, "depths": [1]}}, r"hidden_sizes=\[8, 16\].*depths=\[1\].*one length"),
        ({"patch_embedding": {**CNN, "depths": [1, 0]}}, r"depths=\[1, 0\].*at least 1"),
        ({"patch_embedding": {**CNN, "num_groups": 5}}, r"num_groups=5 must divide each of .*\[8, 16\]"),
        ({"patch_embedding": {**CNN, "num_groups": 0}}, "num_groups=0"),
        (
            {"patch_embedding": {**CNN, "hidden_sizes": [8, 4]}},
            "Stage 2.*patch_size=8.*num_groups=4.*fewer groups or stages",
        ),
        (
            {"backbone_config": {"model_type": "resnet"}},
            "patch_embedding='convolutional'.*backbone_config.*one",
        ),
    ],
)
def test_refuses(fields, message):
    with pytest.raises(Exception, match=f"(?s){message}"):
        AdaptiveViTConfig.from_dict(tiny_config().to_dict() | {"patch_embedding": CNN} | fields)
