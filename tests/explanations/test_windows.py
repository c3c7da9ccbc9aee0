"""Explanations of Swin: windows instead of attention."""

import numpy as np
import PIL.Image
import pytest
import torch

from tests.helpers.models import SWINS, every_swin, tiny_swin_config
from vit_hf import AdaptiveSwinForImageClassification, AdaptiveViTImageProcessor, explain
from vit_hf.hub.model_card import make_model_card


def noisy_corner(size: tuple[int, int]) -> PIL.Image.Image:
    """Gray, with noise in the lower right corner."""
    pixels = np.full((size[1], size[0], 3), 128, dtype=np.uint8)
    pixels[-8:, -8:] = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def classifier(**fields) -> AdaptiveSwinForImageClassification:
    return AdaptiveSwinForImageClassification(tiny_swin_config(**fields))


PROCESSOR = AdaptiveViTImageProcessor(do_resize=False, patch_size=4)


@every_swin
@pytest.mark.parametrize("size", [(64, 64), (70, 42)])
def test_pictures_of_every_kind(swin, size, tmp_path):
    model = classifier(**swin)
    [found] = explain(model, PROCESSOR, noisy_corner(size), output=tmp_path)
    assert found.grid == (-(-size[1] // 4), -(-size[0] // 4)) and found.attention is None
    drawn = {"overview", "windows"} if "patch_selector" in swin else {"overview"}
    assert set(found.files) == drawn and all(path.is_file() for path in found.files.values())
    if "patch_selector" not in swin:
        assert found.kept.all() and found.windows == [] and found.patch_scores is None


def test_windows_are_those_computed_on():
    model = classifier(patch_selector="variance", num_selected_windows=3, window_fit="fixed").eval()
    image = noisy_corner((64, 64))
    [found] = explain(model, PROCESSOR, image)
    with torch.no_grad():
        outputs = model(**PROCESSOR(image, return_tensors="pt"))
    assert [(stage.num_chosen, stage.num_windows) for stage in found.windows] == [(3, 16), (1, 4), (1, 1)]
    first = found.windows[0]
    assert np.array_equal(first.chosen, found.kept)
    assert sorted(np.unique(first.windows[first.chosen])) == outputs.selected_windows[0][0].tolist()
    for stage in found.windows:
        assert stage.chosen[-1, -1] and (stage.shifted is None or stage.shifted[-1, -1])
    # 4x4 cells of 2x2 patches, and all of the image; the second stage has one block, without shift.
    assert [int(stage.chosen.sum()) for stage in found.windows] == [48, 64, 256]
    assert found.windows[0].shifted.sum() == 48 and found.windows[1].shifted is None


def test_the_card_tells_windows():
    model = classifier(**SWINS["swin_selected"])
    text = str(make_model_card(model, PROCESSOR, model_name="small"))
    assert "3 stages of 2, 1, 2 blocks of width 16, 32, 64, 2, 2, 4 heads, windows of 4x4" in text
    assert "`variance` keeps 3 windows of the first stage and a quarter as many of each that follows" in text
    assert "A Swin Transformer of `vit_hf`" in text and "AutoModelForImageClassification" in text
