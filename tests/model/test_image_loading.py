"""Pictures of every kind become the pixels they show, or an error that says what is wrong."""

import base64
import inspect
import io

import numpy as np
import PIL.Image
import pytest
import torch
from transformers.image_transforms import convert_to_rgb

from vit_hf.model import image_loading
from vit_hf.model.image_loading import flatten_images, read_image, to_pixels


COLOURS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
RGB = PIL.Image.fromarray(COLOURS)
GREY = RGB.convert("L")
LEVELS = np.asarray(GREY)
SIXTEEN = LEVELS.astype(np.uint16) * 257
PALETTE = RGB.quantize(32)
RGBA = PIL.Image.merge("RGBA", [*RGB.split(), GREY])


def reopened(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return PIL.Image.open(io.BytesIO(file.getvalue()))


def shown(image, do_convert_rgb=True):
    """`(H, W, C)` as numbers."""
    return to_pixels(image, do_convert_rgb).permute(1, 2, 0).double().numpy()


def on_white(colors, alpha=LEVELS):
    weight = alpha[..., None] / 255
    return colors * weight + 255 * (1 - weight)


def palette_on_white(transparent=3):
    return np.where(np.asarray(PALETTE)[..., None] == transparent, 255, np.asarray(PALETTE.convert("RGB")))


# name -> (image, the pixels it shows, tolerance in gray levels)
PICTURES = {
    "rgb": (reopened(RGB, "PNG"), COLOURS, 0),
    "gray": (reopened(GREY, "PNG"), LEVELS, 0),
    "palette": (reopened(PALETTE, "PNG"), PALETTE.convert("RGB"), 0),
    "palette with transparency": (reopened(PALETTE, "PNG", transparency=3), palette_on_white(), 0),
    "rgba": (reopened(RGBA, "PNG"), on_white(COLOURS), 1),
    "gray with alpha": (reopened(PIL.Image.merge("LA", [GREY, GREY]), "PNG"), on_white(LEVELS[..., None]), 1),
    "cmyk": (reopened(RGB.convert("CMYK"), "TIFF"), COLOURS, 0),
    "cmyk jpeg, which is stored inverted": (
        reopened(PIL.Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "JPEG", quality=100),
        np.full((48, 64, 3), (255, 0, 0)),
        3,
    ),
    "ycbcr": (RGB.convert("YCbCr"), COLOURS, 3),
    "one bit": (reopened(GREY.convert("1"), "PNG"), GREY.convert("1").convert("L"), 0),
    "16-bit png": (reopened(PIL.Image.fromarray(SIXTEEN), "PNG"), LEVELS, 0),
    "16-bit, big endian": (
        PIL.Image.frombytes("I;16B", GREY.size, SIXTEEN.astype(">u2").tobytes()),
        LEVELS,
        0,
    ),
    "32-bit integers": (PIL.Image.fromarray(LEVELS.astype(np.int32)), LEVELS, 0),
    "floats to 1": (reopened(PIL.Image.fromarray(LEVELS.astype(np.float32) / 255), "TIFF"), LEVELS, 0),
    "floats to 255 in memory": (PIL.Image.fromarray(LEVELS.astype(np.float32)), LEVELS, 0),
    "uint16 array": (SIXTEEN, LEVELS, 0),
    "uint16 tensor": (torch.from_numpy(SIXTEEN)[None], LEVELS, 0),
    "big-endian array": (SIXTEEN.astype(">u2"), LEVELS, 0),
    "rounded, not cut": (np.full((8, 8, 3), 257 * 7 + 129, np.uint16), np.full((8, 8, 3), 8), 0),
    "integers": (COLOURS.astype(np.int64), COLOURS, 0),
    "bools": (LEVELS > 99, np.where(LEVELS > 99, 255, 0), 0),
    "mirrored view": (COLOURS[:, ::-1], COLOURS[:, ::-1], 0),
    "read-only array": (np.asarray(RGB), COLOURS, 0),
    "rgba array": (np.asarray(RGBA), on_white(COLOURS), 1),
    "gray array with alpha": (np.dstack([LEVELS, LEVELS]), on_white(LEVELS[..., None]), 1),
    "rgba floats": (np.asarray(RGBA) / 255, on_white(COLOURS) / 255, 1e-6),
    "floats": (COLOURS / 255, COLOURS / 255, 1e-6),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PICTURES)
def test_pixels_come_out_right(name):
    image, expected, tolerance = PICTURES[name]
    expected = np.asarray(expected, dtype=float)
    expected = expected if expected.ndim == 3 else expected[..., None]
    pixels = shown(image)
    assert pixels.shape[2] == 3
    assert np.abs(pixels - expected).max() <= tolerance


@pytest.mark.skipif(
    "return_numpy" not in inspect.signature(convert_to_rgb).parameters,
    reason="this transformers does not put transparent images on white yet",
)
@pytest.mark.parametrize(
    "name", ["rgb", "gray", "palette with transparency", "rgba", "gray with alpha", "cmyk"]
)
def test_colors_as_transformers_converts_them(name):
    image = PICTURES[name][0]
    assert np.array_equal(shown(image), convert_to_rgb(image, return_numpy=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    # How each orientation stores the upright picture (EXIF 2.3, tag 274).
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation](COLOURS)
    exif = PIL.Image.Exif()
    exif[274] = orientation
    image = reopened(PIL.Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(shown(image), COLOURS)
    assert np.array_equal(shown(image), COLOURS), "the image itself was turned"


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("rgb", 3),
        ("gray", 1),
        ("palette", 3),
        ("palette with transparency", 4),
        ("rgba", 4),
        ("cmyk", 4),
        ("one bit", 1),
        ("16-bit png", 1),
        ("uint16 array", 1),
        ("rgba array", 4),
    ],
)
def test_channels_are_kept_if_asked(name, channels):
    image, expected, _ = PICTURES[name]
    pixels = shown(image, do_convert_rgb=False)
    assert pixels.shape == (48, 64, channels)
    if channels == 1:
        assert np.array_equal(pixels[..., 0], np.asarray(expected))


def test_where_the_channels_are():
    first = np.moveaxis(COLOURS, -1, 0)
    assert torch.equal(to_pixels(first, True), to_pixels(COLOURS, True))
    many = np.zeros((8, 6, 5), np.uint8)
    assert to_pixels(many, False, "channels_first").shape == (8, 6, 5)
    assert to_pixels(many, False, "channels_last").shape == (5, 8, 6)
    # Three rows look like three channels.
    assert to_pixels(COLOURS[:3], True, "channels_last").shape == (3, 3, 64)


@pytest.mark.parametrize(
    "image", [RGB, COLOURS, torch.from_numpy(COLOURS)], ids=["pillow", "array", "tensor"]
)
def test_bytes_stay_bytes(image):
    pixels = to_pixels(image, True)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), COLOURS)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 8, 3), np.uint8), r"no pixels.*\(0, 8, 3\)"),
        (torch.zeros(3, 8, 0), r"no pixels.*\(3, 8, 0\)"),
        (PIL.Image.new("RGB", (0, 5)), "no pixels.*0x5"),
        (np.full((8, 8, 3), np.nan), "192 of its values are NaN or infinite"),
        (torch.full((3, 8, 8), torch.inf), "192 of its values are NaN or infinite"),
        (np.full((8, 8, 3), 300), "300.*uint16"),
        (np.full((8, 8, 3), -1), "-1 to -1"),
        (PIL.Image.fromarray(np.full((8, 8), 70000, np.int32)), "70000.*I;16"),
        (reopened(PIL.Image.fromarray(np.full((8, 8), 200, np.float32)), "TIFF"), "200.*0..1"),
        (PIL.Image.fromarray(np.full((8, 8), -1, np.float32)), "-1.*0..255"),
        (PIL.Image.fromarray(np.full((8, 8), np.nan, np.float32)), "nan.*0..255"),
        (np.zeros((8, 8, 5), np.uint8), r"\(8, 8, 5\).*input_data_format"),
        (np.zeros(8), r"\(8,\).*\(C, H, W\)"),
        (np.full((4, 8, 8), 255.0), "alpha in floats"),
        (np.zeros((8, 8, 3), complex), "complex128"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), "complex64"),
        (np.array([["a"]]), "<U1"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_images_that_mean_nothing(image, message):
    with pytest.raises(ValueError, match=message):
        to_pixels(image, True)


def test_flatten_images():
    batch = np.stack([COLOURS, COLOURS])
    flat = flatten_images([RGB, (batch, [[LEVELS]]), torch.from_numpy(batch)])
    assert [type(image) for image in flat] == [type(RGB)] + 3 * [np.ndarray] + 2 * [torch.Tensor]
    assert [image.shape for image in flat[1:]] == 2 * [(48, 64, 3)] + [(48, 64)] + 2 * [(48, 64, 3)]


# -- files and addresses


def encoded(file_format="PNG"):
    file = io.BytesIO()
    RGB.save(file, file_format)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jpg", b"", "0 bytes"),
        ("garbage.jpg", b"not an image" * 9, "cannot identify"),
        ("half.jpg", encoded("JPEG")[:2000], "truncated"),
        ("half.png", encoded()[:5000], ""),
        ("half.gif", encoded("GIF")[:2000], ""),
        ("half.tif", encoded("TIFF")[:2000], ""),
        ("half.webp", encoded("WEBP")[:1000], ""),
        ("half.bmp", encoded("BMP")[:1000], "truncated"),
        ("missing.jpg", None, "no such file"),
    ],
)
def test_bad_file_is_named(name, content, reason, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises(ValueError, match=rf"{name}'.*{reason}.*replace it"):
            read_image(source)


def test_directory_is_no_image(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path.name}'.*is a directory"):
        read_image(tmp_path)


def test_read_file_is_whole_and_closed(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    image = read_image(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert np.array_equal(shown(image), COLOURS)
    assert getattr(image, "fp", None) is None


def test_base64():
    text = base64.encodebytes(encoded()).decode()
    for source in (text, f"data:image/png;base64,{text}"):
        assert np.array_equal(shown(read_image(source)), COLOURS)
    with pytest.raises(ValueError, match=r"'x+'?\.\.\.: there is no such file") as error:
        read_image("x" * 100_000)
    assert len(str(error.value)) < 1000


def test_addresses_go_through_transformers(monkeypatch):
    asked = []
    monkeypatch.setattr(image_loading, "load_url", lambda url: asked.append(url) or RGB)
    assert np.array_equal(shown(read_image("https://example.com/a.png")), COLOURS)
    assert asked == ["https://example.com/a.png"]

    def fail(url):
        raise OSError("connection refused")

    monkeypatch.setattr(image_loading, "load_url", fail)
    with pytest.raises(ValueError, match=r"'http://example\.com/b\.png': connection refused"):
        read_image("http://example.com/b.png")
