"""Heat maps of a tiled prediction, as numbers and as pictures."""

import re
import sys

import numpy as np
import PIL.Image
import pytest
import torch

from tests.helpers.classifiers import PROCESSOR, picture, resnet, vit
from vit_hf import predict_tiled


class _Pooled:
    def __init__(self, pixel_values: torch.Tensor):
        self.pooler_output = pixel_values.flatten(1)
        self.hidden_states = None

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pooler_output


class TestHeatMap:
    def test_finds_where_the_label_is(self):
        class Bright(torch.nn.Module):
            """Stands for a head that sees how bright a tile is."""

            def forward(self, states):
                return torch.stack((states.mean(dim=-1), -states.mean(dim=-1)), dim=-1)

        image = np.zeros((200, 300, 3), np.uint8)
        image[120:180, 20:80] = 255
        model = resnet()
        model.resnet.forward = lambda pixel_values, **kwargs: _Pooled(pixel_values)
        model.classifier = Bright()
        result = predict_tiled(model, image, tile=40, overlap=0.5, image_processor=PROCESSOR)
        heat_map = result.heat_map(0, resolution=300)
        assert heat_map.shape == (200, 300)
        row, column = divmod(int(heat_map.argmax()), 300)
        assert 120 <= row < 180 and 20 <= column < 80
        inside = heat_map[120:180, 20:80].mean()
        assert inside > 2 * heat_map[:80].mean() and inside > 2 * heat_map[:, 140:].mean()

    def test_resolutions_and_labels(self):
        result = predict_tiled(vit(), picture(40, 100), tile=32, image_processor=PROCESSOR)
        assert result.heat_map().shape == (205, 512)
        assert result.heat_map(resolution=10).shape == (4, 10)
        assert result.heat_map(resolution=(7, 3)).shape == (7, 3)
        torch.testing.assert_close(sum(result.heat_map(label) for label in range(3)), torch.ones(205, 512))
        torch.testing.assert_close(result.heat_map("LABEL_1"), result.heat_map(1))
        torch.testing.assert_close(result.heat_map(), result.heat_map(result.label))
        for label in (3, -1, "cat", True, 1.0):
            with pytest.raises(ValueError, match=rf"label={label!r} is not a class.*0\.\.2.*'LABEL_0'"):
                result.heat_map(label)
        for resolution in (0, 2.5, (1, 2, 3), "high"):
            with pytest.raises(ValueError, match="resolution="):
                result.heat_map(resolution=resolution)

    def test_drawn(self, tmp_path):
        for size in [(40, 100), (300, 20), (60, 60)]:
            image = picture(*size)
            result = predict_tiled(vit(), image, tile=32, image_processor=PROCESSOR)
            result.figure(image, name="a picture").savefig(tmp_path / "map.png")
            drawn = np.asarray(PIL.Image.open(tmp_path / "map.png").convert("RGB"))
            # Something is in the middle of the map, and nothing runs off the sheet.
            assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 500
            border = np.concatenate(
                (drawn[:8].reshape(-1, 3), drawn[:, :8].reshape(-1, 3), drawn[:, -8:].reshape(-1, 3))
            )
            assert (border == 255).all()
        with pytest.raises(ValueError, match=r"has 10x10 pixels, and the image that was predicted has 60x60"):
            result.figure(picture(10, 10))

    def test_shows_itself_with_name_and_scale(self, tmp_path, monkeypatch):
        PIL.Image.fromarray(picture(60, 90)).save(tmp_path / "a scan.png")
        result = predict_tiled(vit(), tmp_path / "a scan.png", tile=32, image_processor=PROCESSOR)
        assert re.fullmatch(
            r"TiledPrediction\('a scan.png': LABEL_. \(.*%\); .* tiles of 90x60 pixels\)", repr(result)
        )
        assert result._repr_png_().startswith(b"\x89PNG")
        for figure in (result.figure(), result.figure(tmp_path / "a scan.png")):
            assert figure.axes[0].get_title(loc="left").startswith("a scan.png")
            text = " ".join(figure.texts[0].get_text().split())
            assert re.search(r"Colors: probability from 0 to 0\.\d+, the most in this image\.", text)
        monkeypatch.setitem(sys.modules, "vit_hf.inference.heat_maps", None)  # as without matplotlib
        assert result._repr_png_() is None

    def test_of_memory_and_regressions(self):
        result = predict_tiled(vit(num_labels=1), picture(60, 90), tile=32, image_processor=PROCESSOR)
        assert re.fullmatch(r"TiledPrediction\('image': -?[\d.e-]+; .*\)", repr(result))
        assert "the least and the most in this image" in " ".join(result.figure().texts[0].get_text().split())
