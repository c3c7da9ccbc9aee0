"""Regions of files of every kind are those of the whole image, as are thumbnails."""

import multiprocessing
import pickle
import threading

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.image_files import FILES, GREY_RGB, RGB, RGBA, as_pillow
from vit_hf.readers.opening import ArraySource, ImageSource, open_image


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """name -> (path, pixels, tolerance)"""
    folder = tmp_path_factory.mktemp("images")
    made = {}
    for name, write, pixels, tolerance in FILES:
        write(folder / name)
        made[name] = (folder / name, as_pillow(folder / name) if pixels is None else pixels, tolerance)
    return made


every_file = pytest.mark.parametrize("name", [file.name for file in FILES])


def difference(a, b):
    assert a.shape == b.shape
    return np.abs(a.astype(float) - b).max()


@every_file
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_regions(name, written, data):
    path, pixels, tolerance = written[name]
    with open_image(path) as image:
        assert (image.height, image.width) == pixels.shape[:2]
        for _ in range(5):
            top = data.draw(st.integers(0, image.height - 1))
            left = data.draw(st.integers(0, image.width - 1))
            height = data.draw(st.integers(1, image.height - top))
            width = data.draw(st.integers(1, image.width - left))
            region = image.read(top, left, height, width)
            assert region.dtype == np.uint8
            assert difference(region, pixels[top : top + height, left : left + width]) <= tolerance


@every_file
@pytest.mark.parametrize("size", [(30, 40), (97, 31), (200, 260), (800, 1100), (1, 1)])
def test_thumbnails(name, written, size):
    path, pixels, tolerance = written[name]
    whole = PIL.Image.fromarray(np.round(pixels).astype(np.uint8))
    expected = np.asarray(whole.resize(size[::-1], PIL.Image.Resampling.BILINEAR))
    with open_image(path) as image:
        thumbnail = image.thumbnail(*size)
    assert thumbnail.shape == (*size, 3)
    assert thumbnail.dtype == np.uint8
    away = np.abs(thumbnail.astype(float) - expected)
    # Copies made smaller by others, and bits, differ more at edges.
    assert away.mean() <= max(2, tolerance / 4)
    assert np.percentile(away, 99) <= max(12, tolerance)


def test_thumbnail_is_pillows(written):
    with open_image(written["tiles.tif"][0]) as image:
        for size in [(30, 40), (11, 200), (7, 3), (389, 517)]:
            whole = PIL.Image.fromarray(RGB).resize(size[::-1], PIL.Image.Resampling.BILINEAR, reducing_gap=3)
            assert np.array_equal(image.thumbnail(*size), np.asarray(whole))


def test_thumbnail_in_blocks(written, monkeypatch):
    monkeypatch.setattr("vit_hf.readers.base.BLOCK_PIXELS", 1000)
    test_thumbnail_is_pillows(written)


@every_file
def test_pickled(name, written):
    path, pixels, tolerance = written[name]
    with open_image(path) as image:
        image.read(0, 0, 9, 9)
        copy = pickle.loads(pickle.dumps(image))
        assert len(pickle.dumps(image)) < 1000
    with copy:
        assert difference(copy.read(100, 200, 50, 60), pixels[100:150, 200:260]) <= tolerance


class Regions(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return 8 * len(self.images)

    def __getitem__(self, index):
        image = self.images[index // 8]
        row = index % 8 * 40
        return torch.from_numpy(image.read(row, row, 40, 40).copy())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader(method, written):
    names = ["rgb.npy", "jpeg.tif", "rgb.png", "turned_6.jpg", "ome_5.zarr", "slide.svs", "rgb.bmp"]
    images = [open_image(written[name][0]) for name in names]
    for image in images:
        # Libraries have begun whatever they begin on first use.
        image.thumbnail(10, 10)
        image.read(0, 0, 10, 10)
    dataset = Regions(images)
    workers = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context=method
    )
    for index, region in enumerate(workers):
        assert torch.equal(region, dataset[index]), names[index // 8]
    for image in images:
        image.close()


def test_a_fork_does_not_move_the_files_of_its_parent(written):
    with open_image(written["lzw.tif"][0]) as image:
        handle = image._file.filehandle
        position = handle.tell()
        worker = multiprocessing.get_context("fork").Process(target=image.read, args=(0, 0, 389, 517))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        assert handle.tell() == position


@pytest.mark.parametrize("name", ["lzw.tif", "rgb.png", "rgb.zarr"])
def test_threads(name, written):
    path, pixels, _ = written[name]
    wrong = []

    def read(seed):
        for top, left in np.random.default_rng(seed).integers(0, 300, (20, 2)):
            if not np.array_equal(image.read(top, left, 64, 64), pixels[top : top + 64, left : left + 64]):
                wrong.append((top, left))

    with open_image(path) as image:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@every_file
def test_closed(name, written):
    with open_image(written[name][0]) as image:
        image.read(0, 0, 5, 5)
    for question in (lambda: image.read(0, 0, 5, 5), lambda: image.thumbnail(5, 5)):
        with pytest.raises(ValueError, match=rf"{name}' was closed"):
            question()
    with pytest.raises(ValueError, match=rf"{name}' was closed"):
        pickle.loads(pickle.dumps(image))
    image.close()


@pytest.mark.parametrize(
    ("source", "pixels"),
    [
        (PIL.Image.fromarray(RGB), RGB),
        (RGB, RGB),
        (RGB.astype(np.uint16) * 257, RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
        (RGB / 255, RGB),
        (GREY_RGB[..., 0] / np.float32(255), GREY_RGB),
    ],
)
def test_in_memory(source, pixels):
    with open_image(source) as image:
        assert np.array_equal(image.read(10, 20, 30, 40), pixels[10:40, 20:60])
        assert image.thumbnail(4, 5).shape == (4, 5, 3)
        assert open_image(image) is image
        copy = pickle.loads(pickle.dumps(image))
        assert np.array_equal(copy.read(0, 0, *pixels.shape[:2]), pixels)


@pytest.mark.parametrize("source", [RGBA, "rgb.png", "tiles.tif"], ids=["array", "png", "tiff"])
@pytest.mark.parametrize("region", [(0, 0, 390, 1), (-1, 0, 5, 5), (0, 0, 0, 5), (0, 500, 5, 18)])
def test_beyond_the_image(source, region, written):
    with open_image(written[source][0] if isinstance(source, str) else source) as image:
        with pytest.raises(ValueError, match=f"row {region[0]}, column {region[1]} reaches beyond .*389x517"):
            image.read(*region)
        with pytest.raises(ValueError, match="0x5 has no pixels"):
            image.thumbnail(0, 5)


def test_interface():
    with pytest.raises(ValueError, match=r"a ndarray: its float32 values reach from 0.0 to 300.0"):
        open_image(np.linspace(0, 300, 300).reshape(10, 10, 3))
    assert isinstance(open_image(RGB), ArraySource)
    assert issubclass(ArraySource, ImageSource)
