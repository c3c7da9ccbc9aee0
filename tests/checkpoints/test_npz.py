"""Files of google-research/vision_transformer, beside their formulas and beside timm's reader."""

import numpy as np
import pytest
import timm
import torch
from transformers import ViTForImageClassification

from tests.helpers.models import tiny_config
from tests.helpers.npz_files import BLOCKS, CHANNELS, HEADS, HIDDEN, LABELS, PATCH, SIDE, random_file
from tests.helpers.originals import SIZES, original, ours, theirs
from vit_hf import AdaptiveViTForImageClassification, convert
from vit_hf.checkpoints.families import CannotConvert
from vit_hf.checkpoints.npz import POSITIONS, save_npz
from vit_hf.checkpoints.plain import to_transformers


def normalise(x, scale, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def plain_logits(image, p):
    """The model of "An Image is Worth 16x16 Words" on one image `(H, W, C)`, in numpy with its own
    layouts."""
    patches = image.reshape(SIDE, PATCH, SIDE, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(SIDE**2, -1)
    x = patches @ p["embedding/kernel"].reshape(-1, HIDDEN) + p["embedding/bias"]
    x = np.concatenate((p["cls"][0], x)) + p["Transformer/posembed_input/pos_embedding"][0]
    for index in range(BLOCKS):
        block = f"Transformer/encoderblock_{index}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        h = normalise(x, p[f"{block}/LayerNorm_0/scale"], p[f"{block}/LayerNorm_0/bias"])
        q, k, v = (
            np.einsum("td,dhc->htc", h, p[f"{attention}/{name}/kernel"])
            + p[f"{attention}/{name}/bias"][:, None]
            for name in ("query", "key", "value")
        )
        weights = np.exp(np.einsum("htc,hsc->hts", q, k) / np.sqrt(CHANNELS))
        weights /= weights.sum(-1, keepdims=True)
        heads = np.einsum("hts,hsc->thc", weights, v)
        x = x + np.einsum("thc,hcd->td", heads, p[f"{attention}/out/kernel"]) + p[f"{attention}/out/bias"]
        h = normalise(x, p[f"{block}/LayerNorm_2/scale"], p[f"{block}/LayerNorm_2/bias"])
        h = gelu(h @ p[f"{block}/MlpBlock_3/Dense_0/kernel"] + p[f"{block}/MlpBlock_3/Dense_0/bias"])
        x = x + h @ p[f"{block}/MlpBlock_3/Dense_1/kernel"] + p[f"{block}/MlpBlock_3/Dense_1/bias"]
    x = normalise(x, p["Transformer/encoder_norm/scale"], p["Transformer/encoder_norm/bias"])
    x = x[0]
    if "pre_logits/kernel" in p:
        x = np.tanh(x @ p["pre_logits/kernel"] + p["pre_logits/bias"])
    return x @ p["head/kernel"] + p["head/bias"]


def pretraining_head(width=24):
    """As files of ImageNet-21k have it."""
    rng = np.random.default_rng(2)
    shapes = {
        "pre_logits/kernel": (HIDDEN, width),
        "pre_logits/bias": (width,),
        "head/kernel": (width, LABELS),
    }
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


every_head = pytest.mark.parametrize("head", [{}, pretraining_head()], ids=["head", "pre_logits"])


@every_head
def test_outputs_are_those_of_the_formulas(tmp_path, head):
    arrays = random_file(tmp_path / "vit.npz", **head)
    model, processor = convert(tmp_path / "vit.npz")
    image = np.random.default_rng(1).normal(0, 1, (32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(image).permute(2, 0, 1)[None]).logits[0]
    torch.testing.assert_close(
        logits, torch.from_numpy(plain_logits(image, arrays)).float(), atol=1e-5, rtol=1e-5
    )
    assert processor.size.height == 32 and {*processor.image_mean, *processor.image_std} == {0.5}


@pytest.mark.filterwarnings("ignore")
def test_outputs_are_those_of_timm(tmp_path):
    random_file(tmp_path / "vit.npz")
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=PATCH,
        embed_dim=HIDDEN,
        depth=BLOCKS,
        num_heads=HEADS,
        mlp_ratio=2,
        num_classes=LABELS,
    ).eval()
    theirs.load_pretrained(str(tmp_path / "vit.npz"))
    model, _ = convert(tmp_path / "vit.npz", hidden_act="gelu")  # timm's is not the approximation
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, theirs(images), atol=1e-5, rtol=1e-5)


@every_head
def test_there_and_back(tmp_path, head):
    arrays = random_file(tmp_path / "vit.npz", **head)
    model, _ = convert(tmp_path / "vit.npz")
    save_npz(model, tmp_path / "again")
    with np.load(tmp_path / "again") as again:
        assert set(again.files) == set(arrays)
        assert all(np.array_equal(again[name], arrays[name]) for name in arrays)


@every_head
def test_a_second_load_is_the_same_to_the_bit(tmp_path, head):
    random_file(tmp_path / "vit.npz", **head)
    model, _ = convert(tmp_path / "vit.npz")
    model.save_pretrained(tmp_path / "ours")
    again, report = AdaptiveViTForImageClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values())
    images = torch.randn(2, 3, 48, 32)
    assert torch.equal(again(images).logits, model(images).logits)


class TestTransformers:
    """Stock ViT to a file, and back."""

    def test_there_and_back(self, tmp_path, caplog):
        stock = original("vit")
        save_npz(stock, tmp_path / "vit.npz")
        assert "hidden_act='gelu'" in caplog.text  # which the file cannot say
        fields = {"hidden_act": stock.config.hidden_act, "layer_norm_eps": stock.config.layer_norm_eps}
        model, _ = convert(tmp_path / "vit.npz", **fields)
        again = to_transformers(model)
        assert type(again) is ViTForImageClassification
        for size in SIZES:
            images = torch.randn(2, 3, *size)
            expected = theirs(stock, "vit", images)
            torch.testing.assert_close(ours(model, images), expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(theirs(again, "vit", images), expected, atol=1e-5, rtol=1e-5)
        for name, value in stock.state_dict().items():
            assert torch.equal(again.state_dict()[name], value)

    def test_flax_defaults_need_no_warning(self, tmp_path, caplog):
        random_file(tmp_path / "vit.npz")
        save_npz(to_transformers(convert(tmp_path / "vit.npz")[0]), tmp_path / "again.npz")
        with np.load(tmp_path / "vit.npz") as before, np.load(tmp_path / "again.npz") as after:
            assert set(before.files) == set(after.files)
            assert all(np.array_equal(before[name], after[name]) for name in before.files)
        assert not caplog.text

    def test_what_has_no_classifier(self, tmp_path):
        with pytest.raises(CannotConvert, match="holds an image classifier"):
            save_npz(original("vit-encoder"), tmp_path / "vit.npz")


def test_selection_at_once_and_without_a_head(tmp_path):
    random_file(tmp_path / "vit.npz", **{"head/kernel": None, "head/bias": None})
    model, _ = convert(tmp_path / "vit.npz", patch_selector="attention", num_selected_patches=6)
    output = model(torch.randn(2, 3, 48, 64))
    assert output.selected_patches.shape == (2, 6) and output.logits.shape == (2, HIDDEN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"Transformer/encoderblock_0/ls1/gamma": np.ones(HIDDEN)},
            r"unknown to the ViT .*encoderblock_0/ls1/gamma.*without them",
        ),
        ({"head/bias": None}, "incomplete: it lacks head/bias"),
        (
            {"Transformer/encoderblock_1/MlpBlock_3/Dense_0/bias": None},
            "lacks .*encoderblock_1/MlpBlock_3/Dense_0",
        ),
        ({POSITIONS: np.zeros((1, 15, HIDDEN))}, r"14 patches is not square.*image_size=\[height, width\]"),
        ({"cls": np.zeros((1, 1, HIDDEN), dtype=np.complex64)}, "cls is of complex64.*save it as float32"),
        ({"Transformer/encoder_norm/scale": np.zeros(3)}, "not have the shapes"),
        ({"cls": None}, r"not a ViT .*cls"),
        ({"conv_root/kernel": np.zeros((2, 2))}, "hybrid"),
        ({"Transformer/encoderblock_7/LayerNorm_0/scale": np.zeros(HIDDEN)}, "encoderblock_3"),
    ],
)
def test_refuses_other_architectures(changes, message, tmp_path):
    random_file(tmp_path / "vit.npz", **changes)
    with pytest.raises(CannotConvert, match=message):
        convert(tmp_path / "vit.npz")


def test_refuses_what_a_file_cannot_hold_or_must_not(tmp_path):
    with pytest.raises(CannotConvert, match="position_encoding='rotary'"):
        save_npz(
            AdaptiveViTForImageClassification(tiny_config(position_encoding="rotary")), tmp_path / "vit.npz"
        )
    random_file(tmp_path / "evil.npz", cls=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        convert(tmp_path / "evil.npz")


def test_what_training_left_is_ignored(tmp_path):
    arrays = random_file(tmp_path / "vit.npz")
    training = {f"opt/target/{name}": value for name, value in arrays.items()}
    training |= {"opt/state/step": np.array(3), "extra/accum_train_time": np.array(1.0)}
    np.savez(tmp_path / "training.npz", **training)
    model, again = convert(tmp_path / "vit.npz")[0], convert(tmp_path / "training.npz")[0]
    for value, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other)


def test_a_grid_that_is_said_to_be_wide(tmp_path):
    random_file(tmp_path / "vit.npz", **{POSITIONS: np.zeros((1, 15, HIDDEN))})
    model, _ = convert(tmp_path / "vit.npz", image_size=[16, 56])
    assert model(torch.randn(1, 3, 16, 56)).logits.shape == (1, LABELS)
    with pytest.raises(CannotConvert, match="image_size"):
        convert(tmp_path / "vit.npz", image_size=64)
