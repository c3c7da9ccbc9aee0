"""An image that does not fit into memory is classified, under a limit that the system enforces."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from imagecodecs import deflate_encode

from tests.helpers.image_files import picture


# Side of the image, and MiB that may be allocated beyond what libraries and the model have taken.
LIMITS = [
    pytest.param((4096, 48), id="4096"),
    # The pixels alone are 768 MiB.
    pytest.param(
        (16384, 96),
        id="16384",
        marks=[pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("memory_limit")],
    ),
]
TILE = 256

CLASSIFY = """
import json, resource, sys
import PIL.Image
import torch
from vit_hf import *
from vit_hf.inference.streaming import default_processor

torch.set_num_threads(1)
config = AdaptiveViTConfig(
    hidden_size=192, num_attention_heads=3, intermediate_size=768, patch_selector="variance", num_selected_patches=196
)
model = AdaptiveViTForImageClassification(config).eval()
path, limit = sys.argv[1], int(sys.argv[2]) * 2**20
PIL.Image.MAX_IMAGE_PIXELS = None


def in_memory(path):
    with PIL.Image.open(path) as image, torch.inference_mode():
        return model(**default_processor(model)(image, do_resize=False, return_tensors="pt"))


# Libraries take what they take on first use; and both ways work.
predict_streaming(model, "small.tif")
in_memory("small.tif")
# Of the process's memory what is private and may be written to; what torch merely reserves is in it already.
taken = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, (taken + limit, taken + limit))
outcome = {"streaming": predict_streaming(model, path).selected_patches[0].tolist()}
try:
    in_memory(path)
    outcome["in memory"] = "fits"
except MemoryError as error:
    outcome["in memory"] = "MemoryError"
print(json.dumps(outcome))
"""  # noqa: E501


def write_tiff(path: Path, side: int, places: list[tuple[int, int]]) -> None:
    """A picture that is the same in every tile but those at `places`, which show noise; each tile is
    compressed once."""
    smooth = np.repeat(np.arange(TILE, dtype=np.uint8)[:, None, None], TILE, 1).repeat(3, 2)
    common, special = (
        deflate_encode(np.ascontiguousarray(tile).tobytes()) for tile in (smooth, picture(TILE, TILE))
    )
    tiles = side // TILE
    contents = (special if divmod(index, tiles) in places else common for index in range(tiles**2))
    tifffile.imwrite(
        path,
        contents,
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="rgb",
        compression="deflate",
    )


@pytest.fixture(scope="module", params=LIMITS)
def outcome(request, tmp_path_factory):
    """What came of classifying a large image in both ways, and the patches that show something."""
    side, limit = request.param
    folder = tmp_path_factory.mktemp("large")
    places = [(1, 1), (side // TILE - 1, side // TILE - 2)]
    write_tiff(folder / "small.tif", TILE, [(0, 0)])
    write_tiff(folder / "large.tif", side, places)
    run = subprocess.run(
        [sys.executable, "-c", CLASSIFY, "large.tif", str(limit)], capture_output=True, text=True, cwd=folder
    )
    assert run.returncode == 0, run.stderr[-3000:]
    patches = TILE // 16
    shown = {
        (row * patches + down) * (side // 16) + column * patches + across
        for row, column in places
        for down in range(patches)
        for across in range(patches)
    }
    return json.loads(run.stdout.splitlines()[-1]), shown


@pytest.mark.skipif(sys.platform != "linux", reason="other systems enforce no limit on data")
class TestMemoryLimit:
    def test_streaming_keeps_to_it(self, outcome):
        found, shown = outcome
        assert len(found["streaming"]) == 196 and set(found["streaming"]) <= shown

    def test_loading_the_image_does_not(self, outcome):
        found, _ = outcome
        assert found["in memory"] == "MemoryError"
