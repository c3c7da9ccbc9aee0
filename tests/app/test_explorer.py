"""What is behind the page: selectors that a checkpoint can use, numbers of patches, sizes and times."""

import PIL.Image
import pytest
import torch
from transformers import (
    BitConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    VivitConfig,
    VivitForVideoClassification,
)

from tests.helpers.app import make_explorer, photo
from tests.helpers.models import tiny_config, tiny_swin_config
from vit_hf import PATCH_SELECTORS, AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.app import explorer as explorer_module
from vit_hf.app.explorer import ALL_PATCHES, PatchExplorer, load_explorer


LEARNED = {
    name
    for name, selector in PATCH_SELECTORS.items()
    if list(selector(tiny_config(patch_selector=name)).parameters())
}


@pytest.fixture(scope="module")
def explorer() -> PatchExplorer:
    return make_explorer(patch_selector="entropy")


@pytest.mark.parametrize("name", [*PATCH_SELECTORS, None])
def test_a_checkpoint_offers_its_own_selector_and_those_that_need_no_training(name):
    explorer = make_explorer(patch_selector=name)
    assert set(explorer.left_out) == LEARNED - {name}
    assert set(explorer.selectors) == set(PATCH_SELECTORS) - set(explorer.left_out) | {ALL_PATCHES}
    if name is not None:
        assert explorer.selectors[name] is explorer.model.vit.selector


def test_every_selector_that_is_offered_keeps_what_is_asked_for(explorer, monkeypatch):
    monkeypatch.setattr(explorer_module, "AUTOMATIC_SECONDS", 1e6)
    picture = photo(80, 96)
    for name in explorer.selectors:
        exploration = explorer.explore(picture, name, 7)
        kept = len(exploration.explanation.kept_patches)
        assert kept == (120 if name == ALL_PATCHES else 7)
        assert exploration.num_patches == 120
        assert exploration.seconds > 0 and exploration.all_seconds > 0


def test_the_checkpoint_is_left_as_it_was(explorer):
    model = explorer.model
    before = model.vit.selector, model.config.to_dict()
    explorer.explore(photo(64, 64), "saliency", 9)
    with pytest.raises(ValueError):
        explorer.explore(photo(4, 4), "saliency", 9)
    assert (model.vit.selector, model.config.to_dict()) == before


def test_the_answer_is_that_of_the_checkpoint(explorer):
    picture = photo(64, 64)
    exploration = explorer.explore(picture, "entropy", 6)
    inputs = AdaptiveViTImageProcessor(do_resize=False, patch_size=8)(picture, return_tensors="pt")
    with torch.no_grad():
        expected = explorer.model(**inputs)
    torch.testing.assert_close(
        torch.from_numpy(exploration.explanation.prediction.logits), expected.logits[0]
    )
    assert exploration.explanation.kept_patches.tolist() == expected.selected_patches[0].tolist()


def test_more_patches_than_there_are(explorer):
    exploration = explorer.explore(photo(32, 32), "variance", 500)
    assert len(exploration.explanation.kept_patches) == exploration.num_patches == 16
    assert exploration.requested == 500


def test_a_loader_that_selects_leaves_it_to_the_model():
    config = tiny_config(patch_selector="variance")
    selection = {"return_patches": True, "patch_selector": "variance", "num_selected_patches": 6}
    processor = AdaptiveViTImageProcessor(do_resize=False, patch_size=8, **selection)
    explorer = PatchExplorer(AdaptiveViTForImageClassification(config), processor)
    exploration = explorer.explore(photo(64, 64), "saliency", 20)
    assert len(exploration.explanation.kept_patches) == 20
    assert exploration.explanation.patch_scores.shape == (8, 8)
    assert processor.return_patches and processor.patch_selector == "variance"


def test_sizes():
    explorer = make_explorer(do_resize=True)
    grids = {
        size: explorer.explore(photo(60, 120), "uniform", 4, size).explanation.grid
        for size in ("checkpoint", 64, 1024, "native")
    }
    assert grids == {"checkpoint": (4, 4), 64: (4, 8), 1024: (7, 15), "native": (7, 15)}
    assert explorer.trained_size == "32 x 32"
    assert make_explorer().trained_size is None


def test_all_patches_are_timed_once_for_each_size_and_only_where_that_is_quick(monkeypatch):
    explorer = make_explorer(token_reducer="merge", keep_rate=0.6, reduction_layers=[1])
    timed, time_all = [], explorer._time_all

    def count(inputs):
        timed.append(inputs["pixel_values"].shape)
        time_all(inputs)

    monkeypatch.setattr(explorer, "_time_all", count)
    monkeypatch.setattr(explorer_module, "AUTOMATIC_SECONDS", 0.0)
    assert explorer.explore(photo(64, 64), "variance", 4).all_seconds is None
    explorer.measure_all(photo(64, 64))
    assert explorer.explore(photo(64, 64), "variance", 4).all_seconds > 0
    monkeypatch.setattr(explorer_module, "AUTOMATIC_SECONDS", 1e6)
    explorer.explore(photo(64, 64), "entropy", 9)
    assert len(timed) == 1
    explorer.explore(photo(64, 48), "entropy", 9)
    assert len(timed) == 2
    assert explorer.model.vit.reducers  # which all patches go without


def test_too_many_patches(explorer, monkeypatch):
    monkeypatch.setattr(explorer_module, "MAX_TOKENS", 20)
    assert explorer.explore(photo(64, 56), "variance", 20).all_seconds is None
    with pytest.raises(ValueError, match="Computing on 21 patches would take long: this page stops at 20"):
        explorer.explore(photo(64, 56), "variance", 21)
    with pytest.raises(ValueError, match="Computing on 56 patches"):
        explorer.explore(photo(64, 56), ALL_PATCHES, 1)
    with pytest.raises(ValueError, match="All 56 patches"):
        explorer.measure_all(photo(64, 56))


@pytest.mark.parametrize(
    ("selector", "number", "size", "error"),
    [
        ("policy", 4, (64, 64), "'policy' cannot be used here: learned, and untrained"),
        ("best", 4, (64, 64), "'best' cannot be used here: choose one of entropy, "),
        ("variance", 0, (64, 64), "0 patches are too few"),
        ("variance", 4, (64, 7), "too small: at 7 x 64 pixels it is smaller than one patch of 8 x 8"),
    ],
)
def test_what_cannot_be_done(explorer, selector, number, size, error):
    with pytest.raises(ValueError, match=error):
        explorer.explore(photo(*size), selector, number, "native")


def test_without_cls_token_there_is_no_attention_to_select_by():
    explorer = make_explorer(use_cls_token=False, pooling="mean")
    assert {"attention", "distilled"} <= explorer.left_out.keys()
    assert "needs the CLS token" in explorer.left_out["attention"]
    explorer.explore(photo(64, 64), explorer.default_selector, 5)


def test_a_hybrid():
    cnn = BitConfig(
        depths=[1],
        hidden_sizes=[16],
        embedding_size=8,
        num_groups=2,
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
    )
    explorer = make_explorer(backbone_config=cnn, patch_size=4)
    for name in explorer.selectors:
        assert explorer.explore(photo(32, 48), name, 5).num_patches == 96


def test_channels():
    make_explorer(num_channels=1)
    with pytest.raises(ValueError, match="num_channels=4"):
        make_explorer(num_channels=4)


def test_loads_stock_checkpoints(tmp_path):
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size")
    config = ViTConfig(patch_size=8, **{name: getattr(tiny_config(), name) for name in fields})
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    explorer = load_explorer(str(tmp_path), "cpu")
    exploration = explorer.explore(photo(64, 64), ALL_PATCHES, 1, "checkpoint")
    with torch.no_grad():
        expected = model(**processor(photo(64, 64), return_tensors="pt")).logits[0]
    logits = torch.from_numpy(exploration.explanation.prediction.logits)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_explorer("./nowhere")


def test_a_swin_is_told_where_to_go(tmp_path):
    tiny_swin_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a Swin, .*vit-hf explain"):
        load_explorer(str(tmp_path))


def test_videos_are_refused(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = VivitConfig(**sizes, image_size=16, num_frames=4, tubelet_size=[2, 8, 8])
    VivitForVideoClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is for videos"):
        load_explorer(str(tmp_path), "cpu")


def test_loads_its_own_checkpoints(tmp_path):
    config = tiny_config(patch_selector="policy")
    AdaptiveViTForImageClassification(config).save_pretrained(tmp_path)
    AdaptiveViTImageProcessor(do_resize=False, patch_size=8).save_pretrained(tmp_path)
    explorer = load_explorer(str(tmp_path), "cpu")
    assert explorer.default_selector == "policy"
    assert len(explorer.explore(photo(64, 64), "policy", 5).explanation.kept_patches) == 5


def test_a_strip_is_not_stretched_beyond_memory():
    model = AdaptiveViTForImageClassification(tiny_config())
    processor = AdaptiveViTImageProcessor(size={"shortest_edge": 256}, do_center_crop=True)
    with pytest.raises(ValueError, match=r"too narrow.*edge of 256 pixels.*25,600,000"):
        PatchExplorer(model, processor).explore(PIL.Image.new("RGB", (200_000, 2)), "variance", 4)
