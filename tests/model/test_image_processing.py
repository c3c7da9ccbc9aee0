"""Both image processors, over the same tables."""

import numpy as np
import PIL.Image
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.processors import BACKENDS, picture
from vit_hf.model import image_processing_adaptive_vit
from vit_hf.model.configuration_adaptive_vit import AdaptiveViTConfig
from vit_hf.model.modeling_adaptive_vit import AdaptiveViTModel
from vit_hf.model.pixel_scorers import PIXEL_SCORERS


PATCH_KEYS = ["pixel_values", "patch_coordinates", "spatial_shapes", "pixel_attention_mask"]


@pytest.fixture(params=BACKENDS)
def ours(request):
    return BACKENDS[request.param][0]


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS)
def ours_and_theirs(request):
    return request.param


# -- images as transformers prepares them


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 32},
        {"size": {"height": 20, "width": 30}, "resample": PIL.Image.Resampling.BICUBIC},
        {"size": {"shortest_edge": 24}},
        {"size": {"shortest_edge": 24, "longest_edge": 28}},
        {"size": {"max_height": 30, "max_width": 30}},
        {"do_resize": False},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False, "size": {"height": 32, "width": 32}},
        {"do_center_crop": True, "crop_size": {"height": 40, "width": 40}},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "kind", [PIL.Image.fromarray, np.asarray, torch.from_numpy], ids=lambda kind: kind.__name__
)
def test_same_pixels_as_transformers(ours_and_theirs, options, kind):
    images = [kind(picture(seed=seed)) for seed in range(2)]
    ours, theirs = (processor(**options)(images, return_tensors="pt") for processor in ours_and_theirs)
    assert list(ours) == ["pixel_values"]
    assert torch.equal(ours.pixel_values, theirs.pixel_values)


@pytest.mark.parametrize(
    ("size", "cap", "expected"),
    [
        ((60, 90), 45, (30, 45)),
        ((90, 60), 45, (45, 30)),
        ((20, 30), 45, (20, 30)),
        ((45, 7), 45, (45, 7)),
        ((2, 900), 45, (1, 45)),
    ],
)
def test_longest_edge_is_a_cap(ours, size, cap, expected):
    image = picture(*size)
    prepared = ours(size={"longest_edge": cap})(image, return_tensors="pt").pixel_values
    assert prepared.shape == (1, 3, *expected)
    if size == expected:
        assert torch.equal(prepared, ours(do_resize=False)(image, return_tensors="pt").pixel_values)


def test_backends_agree():
    images = [picture(90, 70, seed) for seed in range(3)]
    one, other = (ours()(images, return_tensors="pt").pixel_values for ours, _ in BACKENDS.values())
    # They resize with the same filter, and round to 8 bits in their own ways.
    torch.testing.assert_close(one, other, atol=3 / 127.5, rtol=0)


def test_batch_equals_singles_and_inputs_stay(ours):
    images = [picture(40 + 8 * seed, 64, seed) for seed in range(3)]
    before = [image.copy() for image in images]
    options = {
        "return_patches": True,
        "patch_selector": "variance",
        "num_selected_patches": 3,
        "return_tensors": "pt",
    }
    for extra in ({}, {"do_resize": False}):
        batch = ours()(images, **options, **extra)
        singles = [ours()(image, **options, **extra) for image in images]
        for key in PATCH_KEYS:
            assert torch.equal(batch[key], torch.cat([single[key] for single in singles])), key
    assert all(np.array_equal(image, old) for image, old in zip(images, before, strict=True))


@pytest.mark.parametrize(
    "images",
    [
        [[PIL.Image.fromarray(picture())], [picture(), torch.from_numpy(picture())]],
        np.stack([picture()] * 3),
        torch.from_numpy(np.stack([picture()] * 3)).permute(0, 3, 1, 2),
        (picture(), picture()[::-1][::-1], np.moveaxis(picture(), -1, 0)),
    ],
    ids=["nested", "channels last", "channels first", "tuple"],
)
def test_batches_may_be_nested_stacked_and_mixed(ours, images):
    expected = ours()(picture(), return_tensors="pt").pixel_values
    assert torch.equal(ours()(images, return_tensors="pt").pixel_values, expected.expand(3, -1, -1, -1))


def test_mixed_sizes_need_patches_or_a_list(ours):
    images = [picture(32, 48), picture(64, 16)]
    processor = ours(do_resize=False)
    assert [tuple(image.shape) for image in processor(images).pixel_values] == [(3, 32, 48), (3, 64, 16)]
    with pytest.raises(ValueError, match=r"\(3, 32, 48\), \(3, 64, 16\).*return_patches=True.*fixed size"):
        processor(images, return_tensors="pt")


def test_one_channel(ours):
    gray = PIL.Image.fromarray(picture()).convert("L")
    processor = ours(
        do_convert_rgb=False, image_mean=[0.5], image_std=[0.5], return_patches=True, patch_size=8
    )
    assert processor(gray, return_tensors="pt").pixel_values.shape == (1, 28 * 28, 64)
    with pytest.raises(ValueError, match=r"Image 0 .*1 channels.*image_mean has 3 values"):
        ours(do_convert_rgb=False)(gray)


# -- patches


@pytest.mark.parametrize("patch_size", [16, [8, 16]])
def test_patches_are_pieces_of_the_image(ours, patch_size):
    images = [picture(50, 70), picture(33, 20, seed=1)]
    processor = ours(do_resize=False, patch_size=patch_size)
    whole = processor(images).pixel_values
    cut = processor(images, return_patches=True, return_tensors="np")
    height, width = np.broadcast_to(patch_size, 2)
    grids = [[50 // height, 70 // width], [33 // height, 20 // width]]
    most = max(rows * columns for rows, columns in grids)
    assert cut["pixel_values"].dtype == np.float32 and cut["patch_coordinates"].dtype == np.int64
    assert cut["pixel_values"].shape == (2, most, height * width * 3)
    assert cut["spatial_shapes"].dtype == np.int64 and cut["spatial_shapes"].tolist() == grids
    for index, (rows, columns) in enumerate(grids):
        count = rows * columns
        places = [[row, column] for row in range(rows) for column in range(columns)]
        assert cut["patch_coordinates"][index, :count].tolist() == places
        assert cut["pixel_attention_mask"][index].tolist() == [1] * count + [0] * (most - count)
        assert (
            not cut["pixel_values"][index, count:].any() and not cut["patch_coordinates"][index, count:].any()
        )
        for patch, (row, column) in zip(cut["pixel_values"][index], places, strict=False):
            piece = whole[index][:, row * height : (row + 1) * height, column * width : (column + 1) * width]
            assert np.array_equal(patch.reshape(height, width, 3), np.moveaxis(np.asarray(piece), 0, -1))


@pytest.mark.parametrize("share", [0.3, 7])
@pytest.mark.parametrize("selector", PIXEL_SCORERS)
def test_selects_what_the_model_would(ours, selector, share):
    chosen = {"type": "random", "seed": 5} if selector == "random" else selector
    config = AdaptiveViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        patch_selector=chosen,
        num_selected_patches=share,
    )
    model = AdaptiveViTModel(config).eval()
    options = {"patch_selector": chosen, "num_selected_patches": share, "patch_size": 8}
    image = picture(43, 66)
    with torch.no_grad():
        expected = model(ours(do_resize=False)(image, return_tensors="pt").pixel_values)
    cut = ours(do_resize=False, return_patches=True, **options)(image, return_tensors="pt")
    row, column = cut["patch_coordinates"].long().unbind(-1)
    assert torch.equal(row * cut["spatial_shapes"][:, 1:] + column, expected.selected_patches)

    model.selector = None
    with torch.no_grad():
        torch.testing.assert_close(model(**cut).last_hidden_state, expected.last_hidden_state)


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(8, 40), st.integers(8, 40)), min_size=1, max_size=3),
    selector=st.sampled_from(sorted(PIXEL_SCORERS)),
    wanted=st.integers(1, 30) | st.floats(0.01, 1),
    backend=st.sampled_from(sorted(BACKENDS)),
)
def test_every_image_gives_the_patches_asked_for(sizes, selector, wanted, backend):
    processor = BACKENDS[backend][0](
        do_resize=False,
        return_patches=True,
        patch_size=(4, 8),
        patch_selector=selector,
        num_selected_patches=wanted,
    )
    cut = processor([picture(*size) for size in sizes], return_tensors="pt")
    totals = [(height // 4) * (width // 8) for height, width in sizes]
    kept = [
        min(wanted, total) if isinstance(wanted, int) else max(1, round(wanted * total)) for total in totals
    ]
    assert cut["pixel_attention_mask"].sum(1).tolist() == kept
    # A whole number is the width of any batch, however small its images: batches made apart can be joined.
    assert cut["pixel_values"].shape[1] == (wanted if isinstance(wanted, int) else max(kept))
    for coordinates, grid, count in zip(cut["patch_coordinates"], cut["spatial_shapes"], kept, strict=True):
        places = coordinates[:count].long()
        raster = places[:, 0] * grid[1] + places[:, 1]
        assert (places >= 0).all() and (places < grid).all()
        assert torch.equal(raster, raster.unique())  # ascending, none twice


def test_fresh_random_patches(ours, tmp_path):
    processor = ours(
        return_patches=True, patch_selector={"type": "random", "seed": None}, num_selected_patches=20
    )
    processor.save_pretrained(tmp_path)
    for candidate in (processor, ours.from_pretrained(tmp_path)):
        first, second = (candidate(picture(), return_tensors="pt").patch_coordinates for _ in range(2))
        assert not torch.equal(first, second)
        seeded = [
            candidate(
                picture(), patch_selector={"type": "random", "seed": 3}, return_tensors="pt"
            ).patch_coordinates
            for _ in range(2)
        ]
        assert torch.equal(*seeded)


def test_image_smaller_than_a_patch(ours):
    with pytest.raises(ValueError, match=r"image 1 of the batch.*12x40 pixels.*patch of 16x16.*[Rr]esize"):
        ours(do_resize=False, return_patches=True)([picture(), picture(12, 40)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"patch_selector": "attention"},
            r"patch_selector='attention'.*\['entropy', 'gradient', 'random', 'saliency', "
            r"'uniform', 'variance'\]",
        ),
        ({"patch_selector": "variance", "num_selected_patches": 0}, r"num_selected_patches=0 .*\(0, 1\]"),
        (
            {"patch_selector": "variance", "num_selected_patches": 1.5},
            r"num_selected_patches=1\.5 .*\(0, 1\]",
        ),
        ({"patch_selector": "variance", "num_selected_patches": True}, "num_selected_patches=True"),
        ({"num_selected_patches": 9}, "num_selected_patches=9 needs a patch_selector"),
        ({"patch_size": 0}, "patch_size=0 must be"),
        ({"patch_size": [16, 16, 3]}, r"patch_size=\[16, 16, 3\] must be"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(ours, options, message):
    with pytest.raises(ValueError, match=message):
        ours(**options)
    # A value of the wrong type is turned down by transformers, in its own words.
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=list(options)[-1]):
        ours()(picture(), **options)


# -- pictures as people have them; test_image_loading.py has all kinds


def test_files_of_many_kinds_in_one_batch(ours, tmp_path):
    upright = PIL.Image.fromarray(picture())
    gray = np.asarray(upright.convert("L"))
    exif = PIL.Image.Exif()
    exif[274] = 6
    upright.rotate(90, expand=True).save(tmp_path / "lying.png", exif=exif)
    upright.convert("CMYK").save(tmp_path / "cmyk.tif")
    PIL.Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    upright.quantize(8).save(tmp_path / "palette.gif")
    expected = [
        picture(),
        picture(),
        np.stack([gray] * 3, -1),
        np.asarray(upright.quantize(8).convert("RGB")),
    ]
    paths = [tmp_path / name for name in ("lying.png", "cmyk.tif", "sixteen.png", "palette.gif")]
    plain = ours(do_resize=False, do_rescale=False, do_normalize=False)
    for sources in (paths, [str(path) for path in paths], [PIL.Image.open(path) for path in paths]):
        shown = plain(sources, return_tensors="np").pixel_values
        assert np.array_equal(shown, np.moveaxis(np.stack(expected), -1, 1))


def test_bad_images_are_named(ours, tmp_path):
    PIL.Image.fromarray(picture(300, 300)).save(tmp_path / "whole.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:5000])
    for source in (tmp_path / "broken.jpg", str(tmp_path / "broken.jpg")):
        with pytest.raises(ValueError, match=r"broken\.jpg.*truncated"):
            ours()([picture(), source])
    with pytest.raises(ValueError, match=r"image 1 .*broken\.jpg.*truncated"):
        ours()([picture(), PIL.Image.open(tmp_path / "broken.jpg")])
    with pytest.raises(ValueError, match=r"image 1 .*no pixels.*\(0, 8, 3\)"):
        ours()([picture(), np.zeros((0, 8, 3), np.uint8)])
    with pytest.raises(ValueError, match="no images"):
        ours()([])
    with pytest.raises(TypeError, match="dict"):
        ours()([{"image": picture()}])


def test_floats_rescaled_twice_are_warned_of(ours, monkeypatch):
    warnings = []
    monkeypatch.setattr(image_processing_adaptive_vit.logger, "warning_once", warnings.append)
    ours()([picture() / 255.0], do_rescale=False)
    ours()([picture().astype(np.float32), np.zeros((8, 8, 3))])
    assert not warnings
    ours()(picture() / 255.0)
    assert "do_rescale=False" in warnings[0]
