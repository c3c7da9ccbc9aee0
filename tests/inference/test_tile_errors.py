"""What `predict_tiled` refuses, and what it says."""

import pytest
import torch

from tests.helpers.classifiers import PROCESSOR, picture, vit
from vit_hf import predict_tiled
from vit_hf.inference.aggregation import aggregate_tiles


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"overlap": 1.0}, r"overlap=1\.0 must be .* in \[0, 1\)"),
            ({"overlap": -0.1}, r"overlap=-0\.1"),
            ({"overlap": float("nan")}, "overlap=nan"),
            ({"overlap": "half"}, "overlap='half'"),
            ({"tile": 0}, "tile=0 must be a whole number of at least 1 pixel"),
            ({"tile": 32.0}, r"tile=32\.0"),
            ({"tile": (32, 0)}, r"tile=\(32, 0\)"),
            ({"tile": (32, 32, 3)}, r"tile=\(32, 32, 3\)"),
            ({"aggregate": "median"}, "aggregate='median' is unknown. Choose from 'mean', 'max'"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"num_top_tiles": 0}, "num_top_tiles=0"),
            ({"attention_temperature": 0}, "attention_temperature=0"),
            ({"feature_map_file": "map.npy"}, "feature_maps=True"),
        ],
    )
    def test_arguments(self, arguments, message):
        model = vit()
        model.forward = None  # errors come before any tile
        with pytest.raises(ValueError, match=message):
            predict_tiled(model, picture(40, 40), image_processor=PROCESSOR, **arguments)

    def test_channels(self):
        with pytest.raises(ValueError, match="takes images of 4 channels"):
            predict_tiled(vit(num_channels=4), picture(40, 40), image_processor=PROCESSOR)

    def test_no_image_processor(self):
        with pytest.raises(
            ValueError, match=r"No image processor is saved with the model.*give image_processor"
        ):
            predict_tiled(vit(), picture(40, 40))

    def test_image_processor_that_may_crop(self):
        class Transforms:
            """Like that of timm's models in transformers."""

        with pytest.raises(TypeError, match="Transforms, whose cropping cannot be turned off"):
            predict_tiled(vit(), picture(40, 40), image_processor=Transforms())

    def test_logits_of_something_else(self):
        model = vit()
        model.classifier = torch.nn.Unflatten(1, (4, 4))
        with pytest.raises(TypeError, match=r"logits of shape \(1, 4, 4\)"):
            predict_tiled(model, picture(30, 30), image_processor=PROCESSOR)

    def test_no_image(self, tmp_path):
        with pytest.raises(ValueError, match=r"nothing\.png"):
            predict_tiled(vit(), tmp_path / "nothing.png", image_processor=PROCESSOR)

    def test_unknown_aggregation_of_tiles(self):
        with pytest.raises(ValueError, match="aggregate='sum' is unknown"):
            aggregate_tiles(torch.zeros(2, 3), "sum")
