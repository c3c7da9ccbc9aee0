"""Without the optional packages: the plain formats are read, the others say what to install."""

import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.image_files import FILES, RGB
from vit_hf.readers import photos
from vit_hf.readers.opening import open_image


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
        assert (image.height, image.width) == (389, 517)


@pytest.mark.parametrize("name", ["rgb.png", "turned_6.png", "turned_5.jpg", "cmyk.jpg"])
def test_photos_without_pyvips(name, write, without, monkeypatch):
    path = write(name)
    with open_image(path) as image:
        streamed = image.read(0, 0, image.height, image.width)
    without("pyvips")
    with open_image(path) as image:
        assert type(image) is photos.PillowPhotoSource
        assert np.array_equal(image.read(0, 0, image.height, image.width), streamed)
    monkeypatch.setattr("vit_hf.readers.base.MAX_WHOLE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"must be decoded whole.*pip install vit_hf\[large\]"):
        open_image(path)


def test_importing_takes_none_of_them_and_codecs_are_named(write):
    """In a process of its own: tifffile decides when it is imported which codecs it has."""
    np.save(write("jpeg.tif").with_name("a.npy"), RGB)
    code = f"""
import sys
import vit_hf
sys.modules["imagecodecs"] = None
vit_hf.open_image("a.npy").read(0, 0, 9, 9)
print([name for name in {PACKAGES} if sys.modules.get(name) is not None])
try:
    vit_hf.open_image("jpeg.tif").read(0, 0, 9, 9)
except ImportError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=write("jpeg.tif").parent
    )
    imported, error = run.stdout.splitlines()
    assert imported == "[]"
    assert error.startswith("Reading 'jpeg.tif' (JPEG) needs imagecodecs: pip install vit_hf[large]")
