"""Small hybrids: a CNN before the encoder."""

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForImageClassification


BIT = {
    "model_type": "bit",
    "embedding_size": 16,
    "hidden_sizes": [32, 64],
    "depths": [1, 2],
    "layer_type": "bottleneck",
    "global_padding": "same",
    "embedding_dynamic_padding": True,
    "num_groups": 4,
}


def hybrid(backbone=BIT, model_class=AdaptiveViTForImageClassification, **fields):
    return model_class(tiny_config(backbone_config=backbone, **fields)).eval()


# Fields of the config.json of google/vit-hybrid-base-bit-384, with the sizes of a small model.
CONFIG = {
    "architectures": ["ViTHybridForImageClassification"],
    "attention_probs_dropout_prob": 0.0,
    "backbone": None,
    "backbone_config": {
        "_name_or_path": "",
        "depths": [1, 2],
        "drop_path_rate": 0.0,
        "embedding_dynamic_padding": True,
        "embedding_size": 32,
        "global_padding": "SAME",
        "hidden_act": "relu",
        "hidden_sizes": [128, 256],
        "layer_type": "bottleneck",
        "model_type": "bit",
        "num_channels": 3,
        "num_groups": 32,
        "out_features": ["stage2"],
        "out_indices": [2],
        "output_stride": 32,
        "stage_names": ["stem", "stage1", "stage2"],
        "width_factor": 1,
    },
    "backbone_featmap_shape": [1, 256, 4, 4],
    "backbone_kwargs": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 32,
    "id2label": {str(index): f"class {index}" for index in range(5)},
    "image_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "label2id": {f"class {index}": index for index in range(5)},
    "layer_norm_eps": 1e-06,
    "model_type": "vit-hybrid",
    "num_attention_heads": 4,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": 1,
    "qkv_bias": True,
    "torch_dtype": "float32",
    "transformers_version": "4.40.0",
    "use_pretrained_backbone": False,
    "use_timm_backbone": False,
}
