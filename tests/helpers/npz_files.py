"""Files as google-research/vision_transformer writes them, with random weights."""

import numpy as np


HEADS, CHANNELS, HIDDEN, MLP, BLOCKS, LABELS, PATCH, SIDE = 4, 8, 32, 64, 3, 5, 8, 4


def random_file(path, **changes):
    """A file with the names and shapes of `models_vit.py`, and its arrays."""
    rng = np.random.default_rng(0)
    shapes = {
        "cls": (1, 1, HIDDEN),
        "embedding/kernel": (PATCH, PATCH, 3, HIDDEN),
        "embedding/bias": (HIDDEN,),
        "Transformer/posembed_input/pos_embedding": (1, SIDE**2 + 1, HIDDEN),
        "Transformer/encoder_norm/scale": (HIDDEN,),
        "Transformer/encoder_norm/bias": (HIDDEN,),
        "head/kernel": (HIDDEN, LABELS),
        "head/bias": (LABELS,),
    }
    for index in range(BLOCKS):
        block = f"Transformer/encoderblock_{index}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/{part}": (HIDDEN,) for part in ("scale", "bias")}
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            shapes |= {
                f"{attention}/{name}/kernel": (HIDDEN, HEADS, CHANNELS),
                f"{attention}/{name}/bias": (HEADS, CHANNELS),
            }
        shapes |= {f"{attention}/out/kernel": (HEADS, CHANNELS, HIDDEN), f"{attention}/out/bias": (HIDDEN,)}
        mlp = f"{block}/MlpBlock_3"
        shapes |= {f"{mlp}/Dense_0/kernel": (HIDDEN, MLP), f"{mlp}/Dense_0/bias": (MLP,)}
        shapes |= {f"{mlp}/Dense_1/kernel": (MLP, HIDDEN), f"{mlp}/Dense_1/bias": (HIDDEN,)}
    arrays = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return arrays
