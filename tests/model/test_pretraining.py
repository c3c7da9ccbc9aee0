"""Masked autoencoding: parity with ViTMAE, mixed shapes, what is seen and what is not."""

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import (
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from tests.helpers.models import TINY, cut, tiny_config
from vit_hf import (
    POSITION_ENCODINGS,
    AdaptiveViTForImageClassification,
    AdaptiveViTForPreTraining,
    AdaptiveViTImageProcessor,
    AdaptiveViTModel,
    convert,
)


every_encoding = pytest.mark.parametrize("encoding", POSITION_ENCODINGS)


def make(options: dict | None = None, **fields) -> AdaptiveViTForPreTraining:
    return AdaptiveViTForPreTraining(tiny_config(**fields, masked_autoencoder=options)).eval()


class TestParity:
    @pytest.fixture(params=[{}, {"norm_pix_loss": True, "mask_ratio": 0.6}], ids=["plain", "normalized"])
    def stock(self, request) -> ViTMAEForPreTraining:
        names = ViTMAEConfig().to_dict().keys()
        fields = {name: value for name, value in TINY.items() if name in names} | TINY["masked_autoencoder"]
        model = ViTMAEForPreTraining(ViTMAEConfig(**fields, **request.param)).eval()
        with torch.no_grad():
            for value in model.parameters():  # tables of positions that are not zero either
                value.add_(0.1 * torch.randn_like(value))
        return model

    def test_everything_equals_vitmae(self, stock):
        ours, _ = convert(stock)
        assert type(ours) is AdaptiveViTForPreTraining
        images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
        with torch.no_grad():
            expected = stock(images, noise=noise, output_hidden_states=True)
            got = ours(images, noise=noise, output_hidden_states=True)
        assert torch.equal(got.mask, expected.mask) and torch.equal(got.ids_restore, expected.ids_restore)
        for name in ("loss", "logits", "hidden_states"):
            torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=1e-5)

    def test_gradients_equal_those_of_vitmae(self, stock):
        ours, _ = convert(stock)
        images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
        for model in (stock, ours):
            model(images, noise=noise).loss.backward()
        for name in ("vit.layers.0.attention.q_proj.weight", "decoder.decoder_embed.weight"):
            grad, expected = (model.get_parameter(name).grad for model in (ours, stock))
            torch.testing.assert_close(grad, expected, atol=1e-6, rtol=1e-4)

    def test_a_checkpoint_converts_and_its_encoder_selects(self, stock, tmp_path):
        stock.save_pretrained(tmp_path)
        ours, _ = convert(tmp_path)
        assert type(ours) is AdaptiveViTForPreTraining
        encoder, _ = convert(tmp_path, patch_selector="variance", num_selected_patches=6)
        assert type(encoder) is AdaptiveViTModel
        assert encoder(torch.randn(1, 3, 64, 48)).selected_patches.shape == (1, 6)


@pytest.mark.filterwarnings("ignore:.*newly initialized")
def test_the_encoder_becomes_a_classifier(tmp_path):
    model = make(position_encoding="rotary")
    model.save_pretrained(tmp_path)
    selection = {"patch_selector": "variance", "num_selected_patches": 6}
    classifier, info = AdaptiveViTForImageClassification.from_pretrained(
        tmp_path, **selection, num_labels=3, output_loading_info=True
    )
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert {name.partition(".")[0] for name in info["unexpected_keys"]} == {"decoder"}
    for name, value in model.vit.state_dict().items():
        assert torch.equal(value, classifier.vit.state_dict()[name])
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is AdaptiveViTForPreTraining
    assert (
        type(AutoModelForImageClassification.from_pretrained(tmp_path)) is AdaptiveViTForImageClassification
    )


@every_encoding
def test_what_is_dropped_is_not_seen(encoding):
    """Logits depend on the kept patches alone, and on each of them."""
    model = make({"decoder_position_encoding": encoding}, position_encoding=encoding)
    images = torch.randn(1, 3, 40, 64)
    output = model(images)
    assert output.mask.sum() == 30 and output.logits.shape == (1, 40, 192)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8)  # a view (1, 3, 5, 8, 8, 8)
    changed = images.clone()
    view = changed.unfold(2, 8, 8).unfold(3, 8, 8)
    for index in output.mask[0].nonzero().flatten().tolist():
        view[:, :, index // 8, index % 8] = 7.0
    assert torch.equal(model(changed).logits, output.logits)
    for index in output.selected_patches[0].tolist():
        assert output.mask[0, index] == 0
        kept = patches[:, :, index // 8, index % 8]
        kept += 1.0
        assert not torch.allclose(model(images).logits, output.logits, atol=1e-4)
        kept -= 1.0


def test_the_loss_is_that_of_dropped_patches_alone():
    model = make()
    images = torch.randn(2, 3, 32, 48)
    output = model(images)
    target = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(2, 24, 192)
    expected = (output.logits - target)[output.mask.bool()].square().mean()
    torch.testing.assert_close(output.loss, expected)


def test_masks_are_fixed_in_evaluation_and_drawn_in_training():
    model = make()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images).mask, model(images).mask)
    model.train()
    first, second = model(images).mask, model(images).mask
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    assert (first.sum(dim=1) == 48).all()


@pytest.mark.parametrize("encoding", ["learned", "rotary", "alibi"])
def test_mixed_shapes_equal_images_alone(encoding):
    model = make({"decoder_position_encoding": encoding}, position_encoding=encoding)
    images = [torch.randn(3, *size) for size in ((64, 40), (24, 16), (8, 8))]
    processor = AdaptiveViTImageProcessor(
        return_patches=True, patch_size=8, do_resize=False, do_rescale=False, do_normalize=False
    )
    batch = processor(images, return_tensors="pt")
    noise = torch.rand(3, 40)
    with torch.no_grad():
        together = model(**batch, noise=noise)
        total = 0.0
        for index, image in enumerate(images):
            number = image.shape[1] * image.shape[2] // 64
            alone = model(image[None], noise=noise[index : index + 1, :number])
            torch.testing.assert_close(together.logits[index, :number], alone.logits[0], atol=1e-5, rtol=1e-5)
            assert torch.equal(together.mask[index, :number], alone.mask[0])
            assert not together.mask[index, number:].any()
            kept = together.selected_patches[index]
            assert torch.equal(kept[kept >= 0], alone.selected_patches[0])
            total += alone.loss * alone.mask.sum()
    torch.testing.assert_close(together.loss, total / together.mask.sum(), atol=1e-5, rtol=1e-5)


def test_pretrains_on_what_the_image_processor_selected():
    model = make()
    processor = AdaptiveViTImageProcessor(
        return_patches=True, patch_size=8, do_resize=False, patch_selector="variance", num_selected_patches=12
    )
    image = torch.randint(0, 255, (3, 96, 64), dtype=torch.uint8)
    batch = processor([image], return_tensors="pt")
    output = model(**batch)
    assert output.logits.shape == (1, 12, 192) and output.mask.sum() == 9
    rows, columns = batch["patch_coordinates"][0].unbind(-1)
    assert set(output.selected_patches[0].tolist()) < set((rows * 8 + columns).tolist())


@pytest.mark.parametrize("sizes", [[(32, 32)], [(32, 32), (16, 24)]], ids=["whole", "mixed"])
def test_the_decoder_may_lie_on_another_device(sizes):
    """As with device_map="auto"; the second device is one that computes shapes only."""
    model = make()
    model.decoder.to("meta")
    add_hook_to_module(model.decoder, AlignDevicesHook(execution_device="meta"))
    images = [torch.randn(3, *size) for size in sizes]
    inputs = {"pixel_values": torch.stack(images)} if len(images) == 1 else cut(images)
    assert model(**inputs).loss.device.type == "meta"
    assert type(model.decoder).__name__ in model._no_split_modules


def test_the_decoder_follows_the_attention_implementation():
    model = make({"decoder_position_encoding": "relative_bias"})
    images = torch.randn(2, 3, 32, 32)
    fused = model(images).logits
    model.set_attn_implementation("eager")
    assert model.decoder.decoder_layers[0].attention.config._attn_implementation == "eager"
    torch.testing.assert_close(model(images).logits, fused, atol=1e-5, rtol=1e-5)


def test_learns_to_reconstruct():
    model = make({"mask_ratio": 0.5}, initializer_range=0.05).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(250):
        gray = torch.rand(16, 1, 1, 1) * 2 - 1
        loss = model(gray.expand(16, 3, 32, 32)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 / 3  # a tenth of the variance of the grays


class TestRefuses:
    @pytest.mark.parametrize(
        "fields",
        [
            {"patch_selector": "variance"},
            {"token_reducer": "merge", "keep_rate": 0.7, "reduction_layers": [1]},
            {"thumbnail_context": True},
        ],
        ids=str,
    )
    def test_what_selects_or_shows(self, fields):
        with pytest.raises(ValueError, match=f"{next(iter(fields))}=.*pass"):
            make(**fields)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"mask_ratio": 1.0}, r"mask_ratio=1.0 .* \(0, 1\)"),
            ({"decoder_num_attention_heads": 3}, "decoder_hidden_size=16 must be a multiple"),
            ({"decoder_num_hidden_layers": 0}, "decoder_num_hidden_layers=0"),
            ({"decoder_position_encoding": "spiral"}, "'spiral' is unknown. Choose one of"),
            ({"decoder_hidden_size": 18}, "decoder of masked_autoencoder.*multiple of 4"),
        ],
    )
    def test_fields(self, fields, message):
        with pytest.raises(Exception, match="(?s)" + message):
            tiny_config(masked_autoencoder=fields)

    def test_noise_of_another_shape(self):
        with pytest.raises(ValueError, match=r"noise has the shape \(1, 15\).*\(1, 16\)"):
            make()(torch.randn(1, 3, 32, 32), noise=torch.rand(1, 15))
