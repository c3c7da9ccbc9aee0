"""Damaged, hostile and strange files are named, with the place of the damage; they cost neither time nor
memory."""

import pickle
import random
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile
import zarr

from tests.helpers.image_files import FILES, IMAGE, RGB, SHRUNK, TILED
from vit_hf.readers import base
from vit_hf.readers.opening import open_image


WRITERS = {file.name: file.write for file in FILES}


@pytest.fixture
def write(tmp_path):
    def write_(name, change=None):
        path = tmp_path / name
        WRITERS[name](path)
        if change is not None:
            path.write_bytes(change(path.read_bytes()))
        return path

    return write_


def read_all(path, **options):
    with open_image(path, **options) as image:
        for top in range(0, image.height, 64):
            for left in range(0, image.width, 64):
                image.read(top, left, min(64, image.height - top), min(64, image.width - left))


def half(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize("name", ["rgb.jpg", "progressive.jpg", "rgb.png", "turned_6.png", "turned_3.jpg"])
def test_cut_photo(name, write):
    with pytest.raises(
        ValueError, match=rf"{name}' in the region of .* at row \d+, column \d+: .*Replace the file"
    ):
        read_all(write(name, half))


def test_what_was_decoded_before_the_cut_is_right(write):
    path = write("rgb.png", half)
    with open_image(path) as image:
        assert np.array_equal(image.read(0, 100, 100, 100), RGB[:100, 100:200])
        for _ in range(2):
            with pytest.raises(ValueError, match="row 380, column 7"):
                image.read(380, 7, 9, 9)
        with pytest.raises(ValueError, match=r"rgb\.png"):
            image.thumbnail(9, 9)
        assert np.array_equal(image.read(0, 100, 100, 100), RGB[:100, 100:200])


def test_no_grey_where_a_jpeg_was_cut_and_closed(write):
    """Pillow shows this one."""
    path = write("rgb.jpg", lambda content: half(content) + b"\xff\xd9")
    PIL.Image.open(path).load()
    with pytest.raises(ValueError, match=r"rgb\.jpg' in the region .*premature end"):
        read_all(path)


@pytest.mark.parametrize(
    "name",
    ["strips.tif", "tiles.tif", "lzw.tif", "jpeg.tif", "strip_uncompressed.tif", "rgb.npy", "slide.svs"],
)
def test_cut_file(name, write):
    with pytest.raises(ValueError, match=name):
        read_all(write(name, half))


def with_tag(name, tag, change):
    """Writes other numbers into a tag of a TIFF's first page."""

    def write_(path):
        WRITERS[name](path)
        with tifffile.TiffFile(path, mode="r+") as file:
            entry = file.pages.first.tags[tag]
            entry.overwrite(change(entry.value))

    return write_


def one(index, value):
    return lambda values: [value if i == index else old for i, old in enumerate(values)]


def test_damaged_tiles_are_named_and_the_others_read(tmp_path):
    with_tag("tiles.tif", "TileOffsets", one(8, 10**9))(tmp_path / "a.tif")
    with open_image(tmp_path / "a.tif") as image:
        assert np.array_equal(image.read(0, 0, 64, 517), RGB[:64])
        # 7 tiles in a row.
        with pytest.raises(
            ValueError,
            match=r"a\.tif' in the region of 9x9 pixels at row 70, column 81: .*row 1, column 1 of "
            r"tiles .*1000000000",
        ):
            image.read(70, 81, 9, 9)
        with pytest.raises(ValueError, match=r"a\.tif"):
            image.thumbnail(9, 9)


@pytest.mark.parametrize(
    ("name", "tag", "change", "message"),
    [
        ("tiles.tif", "TileByteCounts", one(3, 0), "no data for it"),
        ("tiles.tif", "TileOffsets", one(3, 0), "no data for it"),
        ("tiles.tif", "TileByteCounts", one(3, 100), "tile in row 0, column 3"),
        ("lzw.tif", "TileByteCounts", one(3, 100), "tile in row 0, column 3"),
        (
            "jpeg.tif",
            "TileByteCounts",
            lambda values: [values[0] - 300, *values[1:]],
            "JPEG data are truncated",
        ),
        ("jpeg.tif", "TileOffsets", lambda values: [values[0] + 99, *values[1:]], "tile in row 0, column 0"),
        ("strips.tif", "ImageLength", lambda _: 2**31, "needs 306783379 tiles or strips, and it lists 56"),
        ("strips.tif", "ImageLength", lambda _: 10**5, "needs 14286 tiles or strips, and it lists 56"),
        ("tiles.tif", "ImageWidth", lambda _: 10**6, "tiles or strips, and it lists 49"),
        ("tiles.tif", "TileWidth", lambda _: 2**31, "save it with smaller tiles"),
        ("tiles.tif", "TileWidth", lambda _: 0, "a.tif"),
        ("tiles.tif", "ImageWidth", lambda _: 0, "a.tif"),
        ("tiles.tif", "Compression", lambda _: 777, "777"),
        ("tiles.tif", "PhotometricInterpretation", lambda _: 9, "ICCLAB"),
        ("palette.tif", "BitsPerSample", lambda _: 16, "a.tif"),
    ],
    ids=lambda value: "change" if callable(value) else str(value),
)
def test_lying_tiff(name, tag, change, message, tmp_path):
    with_tag(name, tag, change)(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=message) as error:
        read_all(tmp_path / "a.tif")
    assert "a.tif" in str(error.value)


def test_image_in_a_tile_larger_than_the_tile(tmp_path):
    """As a bomb would have it."""
    large = tmp_path / "large.tif"
    tifffile.imwrite(
        large, np.zeros((1024, 1024, 3), np.uint8), **{**TILED, "tile": (1024, 1024)}, compression="jpeg"
    )
    with tifffile.TiffFile(large, mode="r+") as file:
        for tag in ("TileWidth", "TileLength", "ImageWidth", "ImageLength"):
            file.pages.first.tags[tag].overwrite(64)
    with pytest.raises(ValueError, match="its data are an image of 1024x1024 where a tile has 64x64"):
        read_all(large)


def test_tiles_are_limited(write, monkeypatch):
    monkeypatch.setattr(base, "MAX_TILE_BYTES", 64 * 80 * 3 - 1)
    for name in ("tiles.tif", "rgb.zarr"):
        with pytest.raises(ValueError, match=rf"{name}'.*smaller tiles"):
            open_image(write(name))


def test_circle_of_pages(write):
    def change(content):
        (first,) = struct.unpack_from("<I", content, 4)
        (count,) = struct.unpack_from("<H", content, first)
        after = first + 2 + 12 * count
        return content[:after] + struct.pack("<I", first) + content[after + 4 :]

    assert open_image(write("tiles.tif", change)).height == 389


def png_of(height, width):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def test_absurd_png(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(10**6, 10**6))
    with pytest.raises(
        ValueError, match=r"a\.png' declares 1000000x1000000 pixels.*max_pixels=8589934592.*larger max_pixels"
    ):
        open_image(path)
    # Above Pillow's limit, below ours.
    path.write_bytes(png_of(30_000, 30_000))
    with (
        open_image(path) as image,
        pytest.raises(ValueError, match=r"a\.png' in the region .*row 10, column 20"),
    ):
        image.read(10, 20, 30, 40)


@pytest.mark.parametrize("name", [file.name for file in FILES])
def test_max_pixels(name, write):
    path = write(name)
    size = "517x389" if "turned_" in name and name[7] in "5678" else "389x517"
    with pytest.raises(
        ValueError, match=rf"{name}' declares .*{389 * 517} in all, more than max_pixels=201112"
    ):
        open_image(path, max_pixels=389 * 517 - 1)
    for limit in (389 * 517, None):
        with open_image(path, max_pixels=limit) as image:
            assert f"{image.height}x{image.width}" in (size, "389x517", "517x389")
            assert pickle.loads(pickle.dumps(image)).max_pixels == limit


@pytest.mark.parametrize("name", ["rgb.bmp", "progressive.jpg"])
def test_what_is_decoded_whole_has_a_limit(name, write, monkeypatch):
    monkeypatch.setattr("vit_hf.readers.base.MAX_WHOLE_PIXELS", 1000)
    with pytest.raises(ValueError, match=rf"{name}' must be decoded whole"):
        open_image(write(name))
    open_image(write(name), max_pixels=None).close()


def test_pillows_limit_does_not_interfere_and_stays(write, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    for name in ("rgb.bmp", "rgb.jpg", "jpeg2000.tif", "subifds.tif"):
        with open_image(write(name)) as image:
            image.read(0, 0, image.height, image.width)
            image.thumbnail(9, 9)
    assert PIL.Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.jpg", b""),
        ("text.tif", b"hello" * 99),
        ("short.tif", b"II*\0\x08\0\0\0"),
        ("short.png", b"\x89PNG\r\n\x1a\n"),
    ],
)
def test_no_image(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        open_image(tmp_path / name)


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.tif'.*no such file"):
        open_image(tmp_path / "nothing.tif")
    with pytest.raises(ValueError, match="is a directory, and no zarr"):
        open_image(tmp_path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 6, 3), np.uint8), r"\(4, 5, 6, 3\)"),
        (np.zeros((20, 30, 7), np.uint8), r"\(20, 30, 7\)"),
        (np.zeros((20, 30), complex), "complex128"),
        (np.array([[None, 1], [2, 3]]), "Python objects"),
        (np.zeros((0, 30), np.uint8), "no pixels"),
    ],
    ids=str,
)
def test_array_without_a_meaning(array, message, tmp_path):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a\.npy'.*{message}"):
        open_image(tmp_path / "a.npy")


@pytest.mark.parametrize("value", [300, -1, np.nan, 1.5])
def test_values_beyond_their_range_are_named_with_the_place(value, tmp_path):
    array = np.zeros((50, 60), np.int32 if isinstance(value, int) else np.float32)
    array[40, 50] = value
    np.save(tmp_path / "a.npy", array)
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(16, 16))
    for name in ("a.npy", "a.tif"):
        with open_image(tmp_path / name) as image:
            assert image.read(0, 0, 30, 60).max() == 0
            with pytest.raises(
                ValueError, match=rf"{name}' in the region .*row 36, column 48.*values reach from"
            ):
                image.read(36, 48, 9, 9)


def test_stack_of_planes(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((5, 64, 64), np.uint8), ome=True)
    with pytest.raises(ValueError, match=r"a\.ome\.tif'.*stack.*\(5, 64, 64\)"):
        open_image(tmp_path / "a.ome.tif")


def test_pages_of_a_book(tmp_path):
    """Unrelated pages are no stack; as in Pillow, the first one is the image."""
    IMAGE.save(
        tmp_path / "a.tif", save_all=True, append_images=[IMAGE.rotate(180), PIL.Image.fromarray(SHRUNK[0])]
    )
    with open_image(tmp_path / "a.tif") as image:
        assert np.array_equal(image.read(0, 0, 389, 517), RGB)
        assert image.levels == [(389, 517)]


def test_zarr_groups(tmp_path):
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_array("inside", shape=(8, 8), dtype="u1")
    with pytest.raises(ValueError, match=r"a\.zarr'.*multiscales.*\(inside\)"):
        open_image(tmp_path / "a.zarr")


def test_damaged_chunk(write):
    path = write("rgb.zarr")
    (path / "c" / "1" / "2" / "0").write_bytes(b"no chunk")
    with open_image(path) as image:
        assert np.array_equal(image.read(0, 0, 100, 517), RGB[:100])
        with pytest.raises(
            ValueError, match=r"rgb\.zarr' in the region .*row 110, column 190.*row 1, column 2 of tiles"
        ):
            image.read(110, 190, 9, 9)


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "tiles.tif",
        "jpeg.tif",
        "subifds.tif",
        "big.tif",
        "rgb.jpg",
        "rgb.png",
        "rgb.npy",
        "rgb.zarr",
        "slide.svs",
    ],
)
def test_random_damage(name, write):
    """Errors that name the file, or pixels; nothing else."""
    path = write(name)
    file = path / "zarr.json" if path.is_dir() else path
    good = file.read_bytes()
    chance = random.Random(0)
    for _ in range(30):
        bad = bytearray(good)
        # Most of what can be damaged is at both ends.
        for _ in range(chance.choice([1, 5])):
            bad[
                chance.choice(
                    [chance.randrange(min(400, len(bad))), -chance.randrange(1, min(400, len(bad)))]
                )
            ] = chance.choice([0, 255, chance.randrange(256)])
        file.write_bytes(bad)
        try:
            with open_image(path) as image:
                image.read(image.height // 2, image.width // 2, 1, 1)
                image.thumbnail(9, 9)
        except ValueError as error:
            assert name in str(error)
