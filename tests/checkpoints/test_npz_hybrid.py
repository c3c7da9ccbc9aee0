"""Hybrids of google-research/vision_transformer beside timm's reader of their files."""

import numpy as np
import pytest
import torch

from tests.helpers.hybrids import BIT, hybrid
from tests.helpers.npz_files import HIDDEN, random_file
from tests.helpers.originals import SIZES, timm_hybrid
from vit_hf import AdaptiveViTForImageClassification, convert
from vit_hf.checkpoints.families import CannotConvert
from vit_hf.checkpoints.npz import save_npz


WIDTH, DEPTHS = 32, (1, 2)


def resnet_arrays() -> dict[str, np.ndarray]:
    """Names and shapes of `models_resnet.py`, for a root and two stages: a stride of 8."""
    shapes = {"conv_root/kernel": (7, 7, 3, WIDTH), "gn_root/scale": (WIDTH,), "gn_root/bias": (WIDTH,)}
    entering = WIDTH
    for stage, depth in enumerate(DEPTHS):
        middle = WIDTH * 2**stage
        for unit in range(depth):
            name = f"block{stage + 1}/unit{unit + 1}"
            shapes |= {
                f"{name}/conv1/kernel": (1, 1, entering, middle),
                f"{name}/conv2/kernel": (3, 3, middle, middle),
                f"{name}/conv3/kernel": (1, 1, middle, 4 * middle),
            }
            norms = {"gn1": middle, "gn2": middle, "gn3": 4 * middle}
            if unit == 0:
                shapes[f"{name}/conv_proj/kernel"] = (1, 1, entering, 4 * middle)
                norms["gn_proj"] = 4 * middle
            for norm, channels in norms.items():
                shapes |= {f"{name}/{norm}/{part}": (channels,) for part in ("scale", "bias")}
            entering = 4 * middle
    shapes |= {"embedding/kernel": (1, 1, entering, HIDDEN)}
    rng = np.random.default_rng(3)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("older", [False, True])
def test_outputs_are_those_of_timm(size, older, tmp_path):
    arrays = resnet_arrays()
    if older:  # with the names and shapes of before flax' linen
        arrays = {
            name: value[None, None, None] if "/gn" in f"/{name}" else value for name, value in arrays.items()
        }
    random_file(tmp_path / "hybrid.npz", **arrays)
    theirs = timm_hybrid()
    theirs.load_pretrained(str(tmp_path / "hybrid.npz"))
    # timm's activation is not the approximation.
    model, processor = convert(
        tmp_path / "hybrid.npz", hidden_act="gelu", position_encoding={"type": "learned", "antialias": True}
    )
    assert model.config.patch_size == processor.patch_size == 8 and model.config.image_size == 32
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, theirs(images), atol=1e-5, rtol=1e-5)


def test_there_and_back(tmp_path):
    arrays = random_file(tmp_path / "hybrid.npz", **resnet_arrays())
    model, _ = convert(tmp_path / "hybrid.npz")
    save_npz(model, tmp_path / "again")
    with np.load(tmp_path / "again") as again:
        assert set(again.files) == set(arrays)
        assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    model.save_pretrained(tmp_path / "saved")
    loaded = AdaptiveViTForImageClassification.from_pretrained(tmp_path / "saved")
    for value, other in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(value, other)


def test_selection_at_once(tmp_path):
    random_file(tmp_path / "hybrid.npz", **resnet_arrays())
    model, _ = convert(tmp_path / "hybrid.npz", patch_selector="variance", num_selected_patches=6)
    assert model(torch.randn(2, 3, 48, 64)).selected_patches.shape == (2, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding/kernel": np.zeros((2, 2, 256, HIDDEN), np.float32)}, "patches of 2 cells"),
        ({"block2/unit2/gn3/scale": None}, "lacks block2/unit2/gn3/scale"),
        ({"block1/unit1/conv3/kernel": None}, "lacks block1/unit1/conv3/kernel"),
    ],
)
def test_refuses_what_cannot_be_read(changes, message, tmp_path):
    random_file(tmp_path / "hybrid.npz", **resnet_arrays() | changes)
    with pytest.raises(CannotConvert, match=message):
        convert(tmp_path / "hybrid.npz")


def test_refuses_a_root_alone(tmp_path):
    arrays = {name: value for name, value in resnet_arrays().items() if "_root" in name}
    random_file(tmp_path / "hybrid.npz", **arrays)
    with pytest.raises(CannotConvert, match="none of its stages"):
        convert(tmp_path / "hybrid.npz")


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"model_type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1]}, "model_type='resnet'"),
        ({**BIT, "layer_type": "preactivation"}, "layer_type='preactivation'"),
        (BIT, "num_groups=4"),
    ],
    ids=["resnet", "preactivation", "groups"],
)
def test_refuses_to_write_other_cnns(backbone, message, tmp_path):
    with pytest.raises(CannotConvert, match=message):
        save_npz(hybrid(backbone), tmp_path / "hybrid.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block1/unit1/se/kernel": np.ones(3)}, "unknown to the ViT .*block1/unit1/se/kernel"),
        ({"gn_root/bias": None}, "it lacks gn_root/bias"),
    ],
)
def test_refuses_arrays_too_many_or_too_few(changes, message, tmp_path):
    random_file(tmp_path / "hybrid.npz", **(resnet_arrays() | changes))
    with pytest.raises(CannotConvert, match=message):
        convert(tmp_path / "hybrid.npz")
