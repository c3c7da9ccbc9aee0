"""An AdaptiveViT as transformers' own ViT."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from tests.helpers.models import SELECTIONS, tiny_config
from tests.helpers.originals import SIZES, original, ours, theirs, timm_hybrid, timm_original
from tests.helpers.scripts import command
from vit_hf import (
    AdaptiveViTForImageClassification,
    AdaptiveViTForMaskedImageModeling,
    AdaptiveViTImageProcessor,
    AdaptiveViTModel,
    convert,
)
from vit_hf.checkpoints.families import CannotConvert
from vit_hf.checkpoints.npz import save_npz
from vit_hf.checkpoints.plain import processor_to_transformers, to_transformers


OTHERS = {
    "position_encoding": "rotary",
    "head_dim": 12,
    "pooling": "mean",
    "classifier_hidden_size": 8,
    "num_register_tokens": 1,
    "norm_type": "rmsnorm",
    "pre_layernorm": True,
    "final_norm": "none",
    "feed_forward": "gated",
    "attention": {"norm": True},
    "patch_embedding": {"type": "linear", "bias": False},
    "key_bias": False,
    "layerscale_value": 0.1,
    "thumbnail_context": True,
}
MEANINGLESS = {
    "masked_autoencoder": {"mask_ratio": 0.5},
    "segmentation_decoder": "convolutional",
    "drop_path_rate": 0.1,
    "head_dim": tiny_config().hidden_size // tiny_config().num_attention_heads,
    "initializer": "truncated_normal",
    "qkv_bias": False,
    "image_size": [32, 48],
    "patch_size": [8, 4],
    "hidden_dropout_prob": 0.1,
    "id2label": dict(enumerate("abcde")),
    "label2id": {name: label for label, name in enumerate("abcde")},
}


def plain(**fields):
    return AdaptiveViTForImageClassification(tiny_config(**fields)).eval()


@pytest.mark.parametrize(
    "fields",
    [{}, *({name: value} for name, value in MEANINGLESS.items() if name != "label2id"), MEANINGLESS],
    ids=str,
)
@pytest.mark.parametrize("scale", [1, 2])
def test_outputs_are_the_same(fields, scale):
    model = plain(**fields)
    stock = to_transformers(model)
    assert type(stock) is ViTForImageClassification and not stock.training
    assert stock.config.id2label == model.config.id2label
    height, width = np.broadcast_to(model.config.image_size, 2) * scale
    images = torch.randn(2, 3, height, width)
    if scale == 1:
        with torch.no_grad():
            expected = stock(images).logits
    elif {"image_size", "patch_size"} & fields.keys():
        pytest.skip("transformers' ViT resizes tables of squares alone")
    else:
        expected = theirs(stock, "vit", images)
    torch.testing.assert_close(ours(model, images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooler", [True, False])
def test_an_encoder(pooler):
    model = AdaptiveViTModel(tiny_config(), add_pooling_layer=pooler).eval()
    stock = to_transformers(model)
    assert type(stock) is ViTModel
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs, expected = model(images), stock(images)
    torch.testing.assert_close(outputs.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    if pooler:
        torch.testing.assert_close(outputs.pooler_output, expected.pooler_output, atol=1e-5, rtol=1e-5)


def test_a_second_load_is_the_same_to_the_bit(tmp_path):
    stock = to_transformers(plain().to(torch.bfloat16))
    assert stock.dtype == torch.bfloat16
    stock.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path, dtype="auto")
    for name, value in stock.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize(
    "target", [to_transformers, lambda model: save_npz(model, "never.npz")], ids=["vit", "npz"]
)
class TestRefuses:
    @pytest.mark.parametrize(("name", "value"), OTHERS.items())
    def test_what_a_stock_model_has_not(self, target, name, value):
        if target is not to_transformers and name == "classifier_hidden_size":
            pytest.skip("a .npz has it")
        with pytest.raises(CannotConvert, match=f"{name}="):
            target(plain(**{name: value}))

    @pytest.mark.parametrize("options", [{"norm": True}, {"bias": False}], ids=str)
    def test_options_of_the_feed_forward_network(self, target, options):
        with pytest.raises(CannotConvert, match="feed_forward="):
            target(plain(feed_forward={"type": "mlp", **options}))

    @pytest.mark.parametrize("options", [{"antialias": True}, {"interpolation": "bilinear"}], ids=str)
    def test_how_a_table_is_resized(self, target, options):
        if target is not to_transformers:
            pytest.skip("a .npz leaves it to its reader")
        with pytest.raises(CannotConvert, match=f"position_encoding=.*{next(iter(options))}"):
            target(plain(position_encoding={"type": "learned", **options}))

    @pytest.mark.parametrize("selection", [name for name in SELECTIONS if name != "dense"])
    def test_selection(self, target, selection):
        with pytest.raises(CannotConvert, match="cannot be stored in"):
            target(plain(**SELECTIONS[selection]))


def test_refuses_other_models_and_activations():
    with pytest.raises(CannotConvert, match="backbone_config="):
        to_transformers(convert(timm_hybrid(), position_encoding="learned")[0])
    with pytest.raises(CannotConvert, match="AdaptiveViTForMaskedImageModeling has no counterpart"):
        to_transformers(AdaptiveViTForMaskedImageModeling(tiny_config()))
    with pytest.raises(CannotConvert, match="hidden_act='elu'"):
        to_transformers(plain(hidden_act="elu"))


class TestProcessor:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"size": {"shortest_edge": 60}, "do_center_crop": True, "crop_size": 48, "resample": 3},
            {"image_mean": [0.1, 0.2, 0.3], "rescale_factor": 0.1, "do_resize": False},
        ],
        ids=str,
    )
    def test_prepares_alike(self, options):
        ours = AdaptiveViTImageProcessor(**options)
        image = Image.effect_noise((80, 70), 80).convert("RGB")
        stock = processor_to_transformers(ours)
        assert type(stock) is ViTImageProcessor
        expected, got = (processor(image, return_tensors="pt").pixel_values for processor in (ours, stock))
        assert torch.equal(got, expected)

    @pytest.mark.parametrize(
        "options",
        [
            {"max_num_patches": 20},
            {"return_patches": True},
            {"rescale_before_resize": True},
            {"patch_selector": "variance", "num_selected_patches": 4, "return_patches": True},
            {"size": {"longest_edge": 64}},
        ],
        ids=str,
    )
    def test_refuses(self, options):
        with pytest.raises(CannotConvert, match=next(iter(options))):
            processor_to_transformers(AdaptiveViTImageProcessor(**options))


class TestScript:
    @pytest.fixture
    def script(self):
        return command("convert")

    def test_from_stock_over_a_file_and_ours_to_stock(self, script, tmp_path):
        stock, images = original("vit"), torch.randn(2, 3, 32, 32)
        stock.save_pretrained(tmp_path / "stock")
        ViTImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "stock")
        script([str(tmp_path / "stock"), "--to", "npz", "--output", str(tmp_path / "vit.npz")])
        fields = '{"hidden_act": "gelu", "layer_norm_eps": 1e-12}'
        script([str(tmp_path / "vit.npz"), "--fields", fields, "--output", str(tmp_path / "ours")])
        script([str(tmp_path / "ours"), "--to", "vit", "--output", str(tmp_path / "again")])
        again = ViTForImageClassification.from_pretrained(tmp_path / "again")
        torch.testing.assert_close(
            theirs(again, "vit", images), theirs(stock, "vit", images), atol=1e-5, rtol=1e-5
        )
        processor = ViTImageProcessor.from_pretrained(tmp_path / "again")
        assert (processor.size.height, processor.image_mean) == (32, (0.5, 0.5, 0.5))
        with pytest.raises(SystemExit, match="patch_selector"):
            fields = '{"patch_selector": "variance", "num_selected_patches": 4}'
            script(
                [str(tmp_path / "ours"), "--to", "vit", "--fields", fields, "--output", str(tmp_path / "no")]
            )

    def test_weights_of_timm(self, script, tmp_path):
        import timm

        name = "vit_tiny_patch16_224"
        model = timm.create_model(name, img_size=32, num_classes=5, pretrained=False).eval()
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        script([str(tmp_path / "weights.pth"), "--architecture", name, "--output", str(tmp_path / "ours")])
        images = torch.randn(2, 3, 32, 32)
        again = AdaptiveViTForImageClassification.from_pretrained(tmp_path / "ours")
        with torch.no_grad():
            torch.testing.assert_close(ours(again, images), model(images), atol=1e-5, rtol=1e-5)
        with pytest.raises(SystemExit, match="pass architecture"):
            script([str(tmp_path / "weights.pth"), "--output", str(tmp_path / "no")])


def test_a_model_of_timm_at_its_native_size():
    model, images = timm_original("vit"), torch.randn(2, 3, 32, 32)
    with pytest.raises(CannotConvert, match=r"position_encoding=.*antialias"):
        to_transformers(convert(model)[0])
    stock = to_transformers(convert(model, position_encoding="learned")[0])
    with torch.no_grad():
        torch.testing.assert_close(stock(images).logits, model(images), atol=1e-5, rtol=1e-5)


def test_there_and_back_from_another_family():
    converted, _ = convert(original("vit-no-qkv-bias"))
    stock = to_transformers(converted)
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(
            theirs(stock, "vit", images), ours(converted, images), atol=1e-5, rtol=1e-5
        )
    with pytest.raises(CannotConvert):
        to_transformers(convert(original("dinov2"))[0])


def test_a_mask_token_goes_along():
    model = AdaptiveViTModel(tiny_config(), use_mask_token=True).eval()
    stock = to_transformers(model)
    assert torch.equal(stock.embeddings.mask_token, model.embeddings.mask_token)
