"""What regions and thumbnails decode."""

import numpy as np
import PIL.Image
import pytest
import pyvips
import tifffile

from tests.helpers.image_files import FILES, RGB
from vit_hf.readers import base, photos
from vit_hf.readers.arrays import ZarrSource
from vit_hf.readers.opening import open_image
from vit_hf.readers.photos import PhotoSource
from vit_hf.readers.slides import SlideSource
from vit_hf.readers.tiff import TiffSource


WRITERS = {file.name: file.write for file in FILES}


@pytest.fixture
def write(tmp_path):
    def write_(name):
        WRITERS[name](tmp_path / name)
        return tmp_path / name

    return write_


def count_tiles(image, monkeypatch):
    decoded = []
    decode = type(image)._tile
    monkeypatch.setattr(
        type(image), "_tile", lambda self, *place: decoded.append(place) or decode(self, *place)
    )
    return decoded


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("tiles.tif", TiffSource),
        ("slide.svs", SlideSource),
        ("rgb.png", PhotoSource),
        ("rgb.jpg", PhotoSource),
        ("ome_4.zarr", ZarrSource),
    ],
)
def test_readers(name, reader, write):
    with open_image(write(name)) as image:
        assert type(image) is reader


@pytest.mark.parametrize("name", ["tiles.tif", "jpeg.tif"])
def test_only_touched_tiles_are_decoded_and_once(name, write, monkeypatch):
    with open_image(write(name)) as image:
        decoded = count_tiles(image, monkeypatch)
        image.read(60, 70, 10, 20)
        assert decoded == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
        image.read(62, 75, 60, 80)
        assert len(decoded) == 4
        image.read(0, 160, 5, 5)
        assert decoded[4:] == [(0, 0, 2)]


def test_kept_tiles_are_limited(write, monkeypatch):
    monkeypatch.setattr(base, "CACHE_BYTES", 5 * 64 * 80 * 3)
    with open_image(write("tiles.tif")) as image:
        for top in range(0, 320, 64):
            image.read(top, 0, 64, 480)
            assert image._kept_bytes == sum(tile.nbytes for tile in image._tiles.values()) <= 5 * 64 * 80 * 3


def test_strips_serve_all_regions_beside(write, monkeypatch):
    monkeypatch.setattr(base, "CACHE_BYTES", 1000)
    with open_image(write("strips.tif")) as image:
        decoded = count_tiles(image, monkeypatch)
        for left in range(0, 500, 50):
            image.read(0, left, 70, 50)
        assert len(decoded) == 10


@pytest.mark.parametrize("name", ["subifds.tif", "pages.tif", "ome_4.zarr", "ome_5.zarr"])
def test_thumbnails_begin_with_a_smaller_copy(name, write, monkeypatch):
    with open_image(write(name)) as image:
        assert image.levels == [(389, 517), (194, 258), (97, 129)]
        decoded = count_tiles(image, monkeypatch)
        for size, level in [((48, 64), 2), ((97, 129), 1), ((98, 10), 0), ((48, 65), 1)]:
            decoded.clear()
            image.thumbnail(*size)
            image._forget_tiles()
            assert {place[0] for place in decoded} == {level}


def test_labels_and_masks_are_no_smaller_copies(tmp_path):
    options = {"tile": (64, 64), "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RGB, photometric="rgb", **options)
        file.write(RGB[:60, :300], photometric="rgb", subfiletype=1, **options)
        file.write(RGB[:190, :200], photometric="rgb", **options)
    with open_image(tmp_path / "a.tif") as image:
        assert image.levels == [(389, 517)]


def test_a_photo_is_decoded_once(write):
    for name in ("rgb.jpg", "rgb.png", "turned_2.jpg"):
        with open_image(write(name)) as image:
            for top in range(0, 360, 40):
                for left in range(0, 500, 50):
                    image.read(top, left, 40, 50)
            assert image._streams[0].passes == 1


def test_what_was_decoded_does_not_stay_in_libvips(write):
    """Its cache of operations holds decoders, and they their rows."""
    path, before = write("rgb.jpg"), pyvips.cache_get_size()
    for _ in range(3):
        with open_image(path) as image:
            image.read(0, 0, 300, 500)
        assert pyvips.cache_get_size() <= before


def test_jpeg_thumbnails_decode_a_fraction(write):
    with open_image(write("rgb.jpg")) as image:
        assert image.levels == [(389, 517), (194, 258), (97, 129), (48, 64)]
        image.thumbnail(20, 30)
        assert not image._streams


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photos_that_are_large_lie_on_disk(orientation, write, monkeypatch):
    monkeypatch.setattr(photos, "TURNED_BYTES", 10_000)
    path = write(f"turned_{orientation}.png")
    whole = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(path)))
    with open_image(path) as image:
        assert np.array_equal(image.read(0, 0, *whole.shape[:2]), whole)
        assert np.array_equal(image.read(200, 100, 30, 40), whole[200:230, 100:140])
        assert (image._scratch is not None) == (orientation > 2)


def test_no_room_on_disk(write, monkeypatch):
    monkeypatch.setattr(photos, "TURNED_BYTES", 0)
    monkeypatch.setattr(photos.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 9}))
    with (
        open_image(write("turned_6.jpg")) as image,
        pytest.raises(ValueError, match=r"turned_6\.jpg'.*orientation is 6.*603339 bytes.*has 9.*TMPDIR"),
    ):
        image.read(0, 0, 5, 5)
