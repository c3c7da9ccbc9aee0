"""Loading any saved classifier."""

import pytest
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForSemanticSegmentation, AdaptiveViTImageProcessor
from vit_hf.checkpoints.loading import load_classifier


@pytest.mark.parametrize("changes", [{}, {"patch_selector": "variance", "num_selected_patches": 4}])
@pytest.mark.parametrize("name", ["ours", "segformer"])
def test_models_of_masks_have_no_classifier(name, changes, tmp_path):
    if name == "ours":
        AdaptiveViTForSemanticSegmentation(tiny_config()).save_pretrained(tmp_path)
        AdaptiveViTImageProcessor().save_pretrained(tmp_path)
    else:
        config = SegformerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], decoder_hidden_size=8)
        SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
        SegformerImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a model ForSemanticSegmentation, which has no classifier"):
        load_classifier(str(tmp_path), **changes)
