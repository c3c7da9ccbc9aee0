"""An image of 192 MiB is read region by region in 64 MiB, beside what is mapped."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tifffile
import zarr

from tests.helpers.image_files import picture, turned


SIDE = 8192
TILES = {"photometric": "rgb", "tile": (512, 512)}


def photo(**options):
    return lambda path, data: PIL.Image.fromarray(data).save(path, **options)


def write_zarr(path, data):
    zarr.create_array(path, shape=data.shape, chunks=(512, 512, 3), dtype="u1")[...] = data


# name -> how it is written
LARGE = {
    "a.npy": np.save,
    "tiles.tif": lambda path, data: tifffile.imwrite(path, data, compression="zlib", **TILES),
    "jpeg.tif": lambda path, data: tifffile.imwrite(path, data, compression="jpeg", **TILES),
    "strips.tif": lambda path, data: tifffile.imwrite(path, data, compression="packbits", rowsperstrip=16),
    "a.jpg": photo(quality=80),
    "a.png": photo(compress_level=1),
    "turned.jpg": photo(quality=80, **turned(6)),
    "a.zarr": write_zarr,
}
# Pages of a mapped file count while they are there; the system takes them back at need.
MAPPED = ("a.npy", "turned.jpg")

READ_ALL = """
import gc, json, sys
from vit_hf import open_image

def memory(field):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1])

def read_all(path):
    with open_image(path) as image:
        for top in range(0, image.height, 512):
            for left in range(0, image.width, 512):
                assert image.read(top, left, 512, 512).any()
        image.thumbnail(256, 256)

grown = {}
for name in sys.argv[1:]:
    # Libraries take what they take on first use.
    read_all("small_" + name)
    gc.collect()
    # The peak begins anew (man 5 proc).
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    read_all(name)
    grown[name] = memory("VmHWM") - before
print(json.dumps(grown))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory")
def test_memory(tmp_path):
    small = picture(512, 512)
    large = np.tile(small, (SIDE // 512, SIDE // 512, 1))
    for name, write in LARGE.items():
        write(tmp_path / f"small_{name}", small)
        write(tmp_path / name, large)
    run = subprocess.run(
        [sys.executable, "-c", READ_ALL, *LARGE], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    grown = json.loads(run.stdout)
    print({name: f"{size / 2**20:.0f} MiB" for name, size in grown.items()})
    allowed = {name: 64 * 2**20 + (SIDE * SIDE * 3 if name in MAPPED else 0) for name in LARGE}
    assert {name: size for name, size in grown.items() if size > allowed[name]} == {}
