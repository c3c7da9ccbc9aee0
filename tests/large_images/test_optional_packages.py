"""Without the optional packages: the plain formats are read, the others say what to install."""

import subprocess
import sys

import numpy as np
import pytest

from vit_hf.large_images import open_image, sources_pillow

from .files import FILES, RGB


WRITERS = {file.name: file.write for file in FILES}
PACKAGES = ("tifffile", "imagecodecs", "zarr", "pyvips", "openslide")


@pytest.fixture
def without(monkeypatch):
    return lambda *names: [monkeypatch.setitem(sys.modules, name, None) for name in names]


@pytest.fixture
def write(tmp_path):
    def write_(name):
        WRITERS[name](tmp_path / name)
        return tmp_path / name

    return write_


@pytest.mark.parametrize(
    ("name", "package"),
    [("tiles.tif", "tifffile"), ("rgb.zarr", "zarr"), ("ome_5.zarr", "zarr")],
)
def test_what_is_missing_is_named(name, package, write, without):
    path = write(name)
    without(package)
    with pytest.raises(ImportError, match=rf"{name}' needs {package}: pip install vit_hf\[large\]"):
        open_image(path)


def test_slides(write, without, tmp_path):
    (tmp_path / "a.mrxs").write_bytes(b"anything")
    path = write("slide.svs")
    without("openslide")
    with pytest.raises(ImportError, match=r"a\.mrxs' needs openslide-python and openslide-bin"):
        open_image(tmp_path / "a.mrxs")
    with open_image(path) as image:
        assert type(image).__name__ == "TiffSource"
        assert image.levels == [(389, 517), (194, 258)]


def test_codecs(write):
    """tifffile decides when it is imported which codecs it has, so in a process of its own."""
    code = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from vit_hf.large_images import open_image\n"
        "try: open_image(sys.argv[1]).read(0, 0, 9, 9)\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, write("jpeg.tif")], capture_output=True, text=True, check=True
    )
    assert "jpeg.tif' (JPEG) needs imagecodecs: pip install vit_hf[large]" in run.stdout


@pytest.mark.parametrize("name", ["rgb.png", "turned_6.png", "turned_5.jpg", "cmyk.jpg"])
def test_photos_without_pyvips(name, write, without, monkeypatch):
    path = write(name)
    with open_image(path) as image:
        streamed = image.read(0, 0, image.height, image.width)
    without("pyvips")
    with open_image(path) as image:
        assert type(image) is sources_pillow.PillowPhotoSource
        assert np.array_equal(image.read(0, 0, image.height, image.width), streamed)
    monkeypatch.setattr("vit_hf.large_images.sources_file.MAX_WHOLE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"must be decoded whole.*pip install vit_hf\[large\]"):
        open_image(path)


def test_importing_takes_none_of_them(tmp_path):
    np.save(tmp_path / "a.npy", RGB)
    code = (
        "import sys, vit_hf, vit_hf.large_images\n"
        "vit_hf.large_images.open_image(sys.argv[1]).read(0, 0, 9, 9)\n"
        f"print([name for name in {PACKAGES} if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.npy"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
