"""Files of weights: what loads, what is refused, and that nothing in them runs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers as t
from PIL import Image
from safetensors.torch import save_file

from tests.helpers.hybrids import CONFIG as HYBRID
from tests.helpers.originals import original, ours, theirs
from vit_hf import AdaptiveViTForImageClassification, convert
from vit_hf.checkpoints.families import CannotConvert


SMALL = "vit_tiny_patch16_224"


class Runs:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def small(name=SMALL, **fields):
    model = timm.create_model(name, pretrained=False, **{"num_classes": 5, "img_size": 64, **fields}).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model


def wide_vit(num_classes, **said_by_timm):
    return timm.models.vision_transformer.VisionTransformer(
        img_size=(64, 144), embed_dim=32, depth=1, num_heads=2, num_classes=num_classes
    )


def same(converted, model, size=64):
    images = torch.randn(2, 3, *np.broadcast_to(size, 2))
    with torch.no_grad():
        torch.testing.assert_close(converted(images).logits, model(images), atol=1e-5, rtol=1e-5)


class TestPickles:
    def test_a_folder_of_tensors_loads(self, tmp_path):
        model = original("dinov2")
        self.save(tmp_path, model, model.state_dict())
        images = torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(
            ours(convert(tmp_path)[0], images), theirs(model, "dinov2", images), atol=1e-5, rtol=1e-5
        )

    @pytest.mark.parametrize("family", ["vit", "dinov2"])
    def test_a_folder_of_anything_else_does_not(self, family, tmp_path):
        model, trace = original(family), tmp_path / "ran"
        self.save(tmp_path, model, {**model.state_dict(), "more": Runs(trace)})
        with pytest.raises(CannotConvert, match=r"not loaded.*safetensors"):
            convert(tmp_path)
        assert not trace.exists()
        torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
        assert trace.exists()  # it would have

    def test_a_hybrid_of_anything_else_does_not(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(HYBRID))
        torch.save({"weights": Runs(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
        with pytest.raises(CannotConvert, match="not loaded"):
            convert(tmp_path)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt"])
    def test_a_file_of_anything_else_does_not(self, suffix, tmp_path):
        trace = tmp_path / "ran"
        torch.save({"weights": Runs(trace)}, tmp_path / f"model{suffix}")
        with pytest.raises(CannotConvert, match="not loaded"):
            convert(tmp_path / f"model{suffix}", architecture=SMALL)
        assert not trace.exists()

    @staticmethod
    def save(path, model, weights):
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(path)
        t.ViTImageProcessor().save_pretrained(path)
        torch.save(weights, path / "pytorch_model.bin")


class TestStateDicts:
    @pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth"])
    def test_of_a_file(self, suffix, tmp_path):
        model = small()
        path = tmp_path / f"model{suffix}"
        if suffix == ".safetensors":
            save_file(model.state_dict(), path)
        else:
            torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)
        converted, processor = convert(str(path), architecture=SMALL, patch_selector=None)
        assert converted.config.image_size == 64 and converted.config.num_labels == 5
        assert processor.crop_size.height == 64
        same(converted, model)

    @pytest.mark.parametrize(
        "name",
        ["vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224"],
    )
    def test_image_size_and_classes_are_those_of_the_weights(self, name):
        size = 70 if "patch14" in name else 80
        model = small(name, img_size=size, depth=12, num_classes=0 if "dinov2" in name else 7)
        converted, _ = convert(model.state_dict(), architecture=name)
        assert converted.config.image_size == size and converted.config.num_labels == model.num_classes
        same(converted, model, size)

    def test_dtype_is_kept(self):
        assert convert(small().half().state_dict(), architecture=SMALL)[0].dtype == torch.float16

    @pytest.mark.parametrize(
        ("architecture", "message"),
        [
            (None, "pass architecture="),
            ("vit_tiny_patch16_225", r"no architecture 'vit_tiny_patch16_225'.*vit_tiny_patch16_224"),
            ("vit_small_patch16_224", "not weights of 'vit_small_patch16_224'"),
        ],
    )
    def test_refuses(self, architecture, message):
        with pytest.raises(CannotConvert, match=message):
            convert(small().state_dict(), architecture=architecture)

    @pytest.mark.filterwarnings("ignore")
    def test_torchscript(self, tmp_path):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "model.pth"))
        with pytest.raises(CannotConvert, match=r"TorchScript.*state_dict\(\)"):
            convert(tmp_path / "model.pth", architecture=SMALL)

    def test_a_table_that_the_architecture_has_is_of_its_grid(self):
        # 4 x 9 patches, as many as of a square of 6 x 6
        timm.models.register_model(wide_vit)
        model = timm.create_model("wide_vit", num_classes=5).eval()
        converted, _ = convert(model.state_dict(), architecture="wide_vit")
        same(converted, model, (64, 144))
        assert converted.config.image_size == [64, 144]

    def test_a_file_that_is_not_there(self):
        with pytest.raises(OSError):
            convert("nowhere.pth", architecture=SMALL)


class TestHubFolders:
    @staticmethod
    def save(model, path, **said):
        """As timm pushes to the Hub."""
        timm.models.save_for_hf(model, path, safe_serialization=True)
        config = json.loads((path / "config.json").read_text())
        config["pretrained_cfg"] |= {
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "interpolation": "bilinear",
            "crop_pct": 0.8,
        }
        (path / "config.json").write_text(json.dumps(config | said))

    def test_with_labels_and_preparation(self, tmp_path):
        model, names = small(), [f"n{index}" for index in range(5)]
        self.save(model, tmp_path, label_names=names)
        converted, processor = convert(tmp_path)
        same(converted, model)
        assert converted.config.id2label == dict(enumerate(names))
        assert processor.image_mean == (0.1, 0.2, 0.3) and processor.size.shortest_edge == 80
        theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        transform = timm.data.create_transform(
            **timm.data.resolve_model_data_config(theirs), is_training=False
        )
        image = Image.effect_noise((60, 60), 80).convert("RGB").resize((400, 400))
        got = processor(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(got, transform(image)[None], atol=0.05, rtol=0)
        converted.save_pretrained(tmp_path / "ours")
        again = AdaptiveViTForImageClassification.from_pretrained(tmp_path / "ours")
        assert again.config.id2label == converted.config.id2label
        for name, value in converted.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])

    def test_pickled_and_of_other_options(self, tmp_path):
        model = small(global_pool="avg", class_token=False)
        self.save(model, tmp_path, model_args={"global_pool": "avg", "class_token": False})
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
        same(convert(tmp_path)[0], model)

    @pytest.mark.parametrize(
        ("name", "size"),
        [(SMALL, (64, 256)), (SMALL, (128, 160)), ("eva02_tiny_patch14_224", (56, 224)), (SMALL, (64, 64))],
    )
    def test_the_image_size_is_the_one_that_is_said(self, name, size, tmp_path):
        model = small(name, img_size=size, depth=1)
        timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
        converted, processor = convert(tmp_path)
        assert np.array_equal(np.broadcast_to(converted.config.image_size, 2), size)
        assert (processor.crop_size.height, processor.crop_size.width) == size
        same(converted, model, size)

    def test_nothing_but_the_architecture_is_read_of_model_args(self, tmp_path):
        model = small(depth=1)
        args = {"depth": 1, "pretrained": True, "checkpoint_path": "/x.pth", "cache_dir": "/x"}
        args |= {"scriptable": True, "exportable": True, "pretrained_cfg": "none", "features_only": False}
        self.save(model, tmp_path, model_args=args | {"pretrained_cfg_overlay": {"file": "/x.pth"}})
        same(convert(tmp_path)[0], model)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ({"opens": "/x.pth"}, r"model_args \['opens'\].*delete them"),
            ({"model_name": "resnet18"}, "model_name"),
            ({"embed_dim": "wide"}, "cannot build 'vit_tiny_patch16_224'"),
        ],
    )
    def test_refuses_other_model_args(self, args, message, tmp_path):
        self.save(small(depth=1), tmp_path, model_args={"depth": 1, **args})
        with pytest.raises(CannotConvert, match=message):
            convert(tmp_path)

    def test_without_weights(self, tmp_path):
        self.save(small(), tmp_path)
        for file in Path(tmp_path).glob("*.safetensors"):
            file.unlink()
        with pytest.raises(OSError, match=r"model\.safetensors"):
            convert(tmp_path)
