"""What the page says and shows, of images of every kind."""

import ast
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.helpers.app import make_explorer, photo
from vit_hf import PATCH_SELECTORS
from vit_hf.app import explorer as explorer_module
from vit_hf.app import pictures
from vit_hf.app.content import (
    about_left_out,
    about_selector,
    default_size,
    duration,
    list_classes,
    selector_choices,
    show,
    size_choices,
)
from vit_hf.app.explorer import ALL_PATCHES
from vit_hf.explanations.explanation import Prediction


NOISE = np.random.default_rng(0).random((48, 64, 4))
KINDS = {
    "rgb": PIL.Image.fromarray((NOISE[..., :3] * 255).astype(np.uint8)),
    "gray": PIL.Image.fromarray((NOISE[..., 0] * 255).astype(np.uint8)),
    "alpha": PIL.Image.fromarray((NOISE * 255).astype(np.uint8)),
    "sixteen bits": PIL.Image.fromarray((NOISE[..., 0] * 65535).astype(np.uint16)),
    "palette": PIL.Image.fromarray((NOISE[..., :3] * 255).astype(np.uint8)).quantize(16),
    "flat": PIL.Image.new("RGB", (64, 48), (9, 9, 9)),
    "one patch": photo(8, 8),
    "very wide": photo(9, 900),
    "very high": photo(900, 9),
}


@pytest.fixture(scope="module")
def explorer():
    return make_explorer(patch_selector="variance")


@pytest.mark.parametrize("num_channels", [3, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind(tmp_path, kind, num_channels):
    KINDS[kind].save(tmp_path / "image.png")
    explorer = make_explorer(patch_selector="variance", num_channels=num_channels)
    for selector in ("variance", ALL_PATCHES):
        content = show(explorer, str(tmp_path / "image.png"), selector, 5, "native")
        assert 'class="figures"' in content.summary and "message" not in content.summary
        width, height = KINDS[kind].size
        assert content.num_patches == (width // 8) * (height // 8)
        for drawn in (content.kept, content.map):
            assert drawn.dtype == np.uint8 and drawn.ndim == 3 and drawn.shape[2] == 3
            assert drawn.shape[1] / drawn.shape[0] == pytest.approx(width / height, rel=0.1)
        assert sum(content.classes.values()) == pytest.approx(1)


def test_sixteen_bits_are_not_white(tmp_path):
    KINDS["sixteen bits"].save(tmp_path / "image.png")
    picture = np.asarray(pictures.read_picture(tmp_path / "image.png", 3))
    assert 100 < picture.mean() < 155


def test_what_was_dropped_is_pale(tmp_path, explorer):
    picture = PIL.Image.new("RGB", (64, 64), (200, 20, 20))
    picture.paste(photo(8, 8), (8, 0))
    picture.save(tmp_path / "image.png")
    content = show(explorer, str(tmp_path / "image.png"), "variance", 1, "native")
    kept, dropped = (cells(content.kept)[0, column] for column in (1, 3))
    assert np.ptp(dropped, axis=-1).max() == 0  # gray
    assert np.ptp(kept, axis=-1).max() > 50
    # Yellow above violet: what has the highest score.
    high, low = (cells(content.map)[0, column].mean(axis=(0, 1)) for column in (1, 3))
    assert high[1] > low[1] + 50


def cells(drawn: np.ndarray) -> np.ndarray:
    """The middles of 8 x 8 cells, `(8, 8, h, w, 3)`."""
    side = drawn.shape[0] // 8
    grid = drawn.astype(int).reshape(8, side, 8, side, 3).swapaxes(1, 2)
    return grid[:, :, side // 4 : -side // 4, side // 4 : -side // 4]


def test_no_image(explorer):
    content = show(explorer, None, "variance", 5, "native")
    assert "Drop an image" in content.summary
    assert content.kept is None and content.classes is None


def damaged(path):
    photo(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:600])


@pytest.mark.parametrize(
    ("make", "selector", "message"),
    [
        (damaged, "variance", "Cannot read the image &#x27;image.png&#x27;"),
        (lambda path: path.write_text("no image"), "variance", "Cannot read the image &#x27;image.png&#x27;"),
        (lambda path: path.write_bytes(b""), "variance", "the file is empty"),
        (lambda path: photo(5, 7).save(path), "variance", "The image is too small: at 7 x 5 pixels"),
        (
            lambda path: PIL.Image.new("L", (8000, 8000)).save(path),
            "variance",
            "image.png has 8000 x 8000 pixels, more than the 50 million",
        ),
        (
            lambda path: PIL.Image.new("1", (20000, 20000)).save(path),
            "variance",
            "image.png has far more than the 50 million",
        ),
        (lambda path: photo(64, 64).save(path), "distilled", "&#x27;distilled&#x27; cannot be used here"),
    ],
)
def test_what_goes_wrong_is_said(tmp_path, explorer, make, selector, message):
    make(tmp_path / "image.png")
    content = show(explorer, str(tmp_path / "image.png"), selector, 5, "native")
    assert message in content.summary
    assert 'role="alert"' in content.summary
    assert str(tmp_path) not in content.summary
    assert content.kept is None and content.map is None and content.classes is None
    assert not content.can_measure


def test_errors_that_nobody_foresaw_are_said_as_well(tmp_path, explorer, monkeypatch):
    photo(64, 64).save(tmp_path / "image.png")

    def fail(*args):
        raise RuntimeError("out of <memory>\nand a long story")

    monkeypatch.setattr(explorer, "explore", fail)
    content = show(explorer, str(tmp_path / "image.png"), "variance", 5, "native")
    assert "That did not work: out of &lt;memory&gt;</p>" in content.summary


def test_figures(tmp_path, explorer, monkeypatch):
    path = str(tmp_path / "image.png")
    photo(256, 256).save(path)
    monkeypatch.setattr(explorer_module, "AUTOMATIC_SECONDS", 0.0)
    content = show(explorer, path, "variance", 24, "native")
    assert "24 of 1,024" in content.summary and "2.3%" in content.summary
    assert "all patches" not in content.summary and content.can_measure
    measured = show(explorer, path, "variance", 24, "native", measure=True)
    assert "for all patches, " in measured.summary and not measured.can_measure
    assert "5,000 requested, more than there are" in show(explorer, path, "variance", 5000, 32).summary


def test_figures_of_too_many_patches(tmp_path, explorer, monkeypatch):
    photo(64, 72).save(tmp_path / "image.png")
    for module in ("explorer", "content"):
        monkeypatch.setattr(f"vit_hf.app.{module}.MAX_TOKENS", 20)
    content = show(explorer, str(tmp_path / "image.png"), "variance", 5, "native")
    assert "too many to time here" in content.summary and not content.can_measure


def test_what_else_the_model_did_is_said(tmp_path):
    photo(64, 64).save(tmp_path / "image.png")
    explorer = make_explorer(
        patch_selector="variance",
        thumbnail_context=True,
        token_reducer="merge",
        keep_rate=0.5,
        reduction_layers=[1],
    )
    content = show(explorer, str(tmp_path / "image.png"), "variance", 20, "native")
    assert "thinned to 10 tokens by merge" in content.summary
    assert "with the tokens of a thumbnail" in content.summary


def test_classes():
    top = [("crane", 0.5), ("crane", 0.25), ("stork", 0.25)]
    classes = list_classes(Prediction(np.zeros(3), np.zeros(3), ["crane"], None, top))
    assert classes == {"crane": 0.5, "crane (another)": 0.25, "stork": 0.25}
    assert list_classes(Prediction(np.zeros(1), None, [], None, [("0", 1.23456)])) == "1.235"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00234, "2.3 ms"), (0.041, "41 ms"), (0.9996, "1.0 s"), (6.94, "6.9 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_what_there_is_to_choose(explorer):
    choices = selector_choices(explorer)
    assert choices[0] == ("variance, the checkpoint's own", "variance")
    assert choices[-1] == ("all patches", ALL_PATCHES)
    for name in [*PATCH_SELECTORS, ALL_PATCHES]:
        assert about_selector(name).endswith((".", "?"))
    text = about_left_out(explorer)
    assert all(name in text for name in explorer.left_out)
    assert [size for _, size in size_choices(explorer)] == [512, 1024, 2048, "native"]
    assert default_size(explorer) == "native"
    resizing = make_explorer(do_resize=True)
    assert size_choices(resizing)[0] == ("as in training: 32 x 32", "checkpoint")
    assert default_size(resizing) == 1024
    assert default_size(make_explorer(do_resize=True, patch_selector="variance")) == "checkpoint"


def test_only_the_page_needs_gradio():
    for path in Path(pictures.__file__).parent.glob("*.py"):
        imported = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in [
                getattr(node, "module", None) or "",
                *(alias.name for alias in getattr(node, "names", [])),
            ]
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert ("gradio" in imported) == (path.name == "page.py")
        assert path.name == "page.py" or "page" not in imported
