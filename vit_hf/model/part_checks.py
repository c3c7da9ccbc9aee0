"""Checks of a configuration's parts: their names, their options, and what each needs of the rest."""

from collections.abc import Iterable, Iterator

from .configuration_adaptive_swin import UNFIT
from .elastic_space import ElasticOptions, read_elastic_options
from .layers import (
    ACTIVATIONS,
    FEED_FORWARDS,
    FINAL_NORMS,
    AttentionLayerOptions,
    FeedForwardOptions,
    read_attention_options,
    read_feed_forward_options,
)
from .mae_decoder import MaskedAutoencoderOptions, decoder_config, read_mae_options
from .options import Options, read_options, shorten, suggest, type_of
from .patch_embeddings import PATCH_EMBEDDINGS
from .positions import POSITION_ENCODINGS
from .registry import IMAGE_ONLY, TABLES, VOLUME_TABLES, check_options, is_known, table_of
from .segmentation import SEGMENTATION_DECODERS, SegmentationOptions, read_segmentation_options
from .sizes import LayerSizes, has_frames, read_layer_sizes


def check_parts(config) -> None:
    """Checks every part of an `AdaptiveViTConfig`.

    Raises:
        ValueError: naming the field, the legal names or options, and what to do.
    """
    check_choice("hidden_act", config.hidden_act, ACTIVATIONS)
    check_choice("feed_forward", config.feed_forward, FEED_FORWARDS)
    check_choice("final_norm", config.final_norm, FINAL_NORMS)
    check_choice("patch_embedding", config.patch_embedding, PATCH_EMBEDDINGS)
    check_choice("segmentation_decoder", config.segmentation_decoder, SEGMENTATION_DECODERS)
    embedding = PATCH_EMBEDDINGS[type_of(config.patch_embedding)]
    options = {
        "feed_forward": read_feed_forward_options(config),
        "final_norm": read_options(FINAL_NORMS[type_of(config.final_norm)], "final_norm", config.final_norm),
        "patch_embedding": read_options(embedding.Options, "patch_embedding", config.patch_embedding),
        "segmentation_decoder": read_segmentation_options(config),
        "attention": read_attention_options(config),
        "masked_autoencoder": read_mae_options(config),
        "elastic_space": read_elastic_options(config),
        "layer_sizes": read_layer_sizes(config),
    }
    embedding.check(config, options["patch_embedding"])
    for field, values in options.items():
        shorten(config, field, values)
    check_needed(config, "patch_selector", "num_selected_patches", None)
    check_needed(config, "token_reducer", "keep_rate", 1)
    for field in TABLES:
        if getattr(config, field) is not None:
            check_class_name(config, field)
            check_options(config, field)
    check_decoder(config)


def options_classes() -> Iterator[tuple[str, str | None, type[Options]]]:
    """Field, name (None where a field holds options alone) and options of every part that comes with the
    package."""
    for field, table in {**TABLES, "patch_embedding": PATCH_EMBEDDINGS}.items():
        for name, part in table.items():
            yield field, name, part.Options
    for name, options in FINAL_NORMS.items():
        yield "final_norm", name, options
    for name in FEED_FORWARDS:
        yield "feed_forward", name, FeedForwardOptions
    for name in SEGMENTATION_DECODERS:
        yield "segmentation_decoder", name, SegmentationOptions
    yield "attention", None, AttentionLayerOptions
    yield "masked_autoencoder", None, MaskedAutoencoderOptions
    yield "elastic_space", None, ElasticOptions
    yield "layer_sizes", None, LayerSizes


def check_needed(config, field: str, amount: str, nothing: float | None, unfit: Iterable[str] = ()) -> None:
    """Raises: ValueError for an amount of what no selector or reducer is there to take."""
    if getattr(config, field) is None and getattr(config, amount) != nothing:
        legal = sorted(table_of(config, field).keys() - set(unfit))
        raise ValueError(f"{amount}={getattr(config, amount)} needs a {field}: choose one of {legal}.")


def check_choice(field: str, value: str | dict, table: dict) -> None:
    """Raises: ValueError for a name that is not in a table."""
    name = type_of(value)
    if name not in table:
        raise ValueError(
            f"{field}={name!r} is unknown. Choose one of {sorted(table)}.{suggest(str(name), table)}"
        )


def check_class_name(config, field: str) -> None:
    """Checks the name of a class of a table, or of the user's own.

    Raises:
        ValueError: if there is no such class, or it is for images and these are videos, or the other way
            round.
    """
    name, legal = type_of(getattr(config, field)), sorted(table_of(config, field))
    if not has_frames(config) and name in VOLUME_TABLES[field]:
        raise ValueError(
            f"{field}={name!r} is for videos and volumes, and these are images: set num_frames, "
            f"or choose one of {legal}."
        )
    if has_frames(config) and name in IMAGE_ONLY.get(field, {}):
        raise ValueError(
            f"{field}={name!r} is for images, and num_frames={config.num_frames} gives patches a "
            "third coordinate: use "
            f"{IMAGE_ONLY[field][name]!r}, or another of {legal}."
        )
    if not is_known(config, field):
        raise ValueError(
            f"{field}={name!r} is unknown. Choose one of {legal}, or name a class of your own as "
            f'"module.Class".{suggest(name, legal)}'
        )


def check_decoder(config) -> None:
    """Checks what reconstructs in pretraining, for images only."""
    if has_frames(config):
        return
    options = read_mae_options(config)
    config = decoder_config(config)
    encoding = POSITION_ENCODINGS[type_of(options.decoder_position_encoding)]
    try:
        encoding.check(
            config,
            read_options(encoding.Options, "decoder_position_encoding", options.decoder_position_encoding),
        )
    except ValueError as error:
        raise ValueError(f"The decoder of masked_autoencoder: {error}") from error


def check_swin_parts(config) -> None:
    """Checks every part of an `AdaptiveSwinConfig`.

    Raises:
        ValueError: naming the field, the legal names or options, and what to do.
    """
    check_choice("hidden_act", config.hidden_act, ACTIVATIONS)
    check_needed(config, "patch_selector", "num_selected_windows", None, UNFIT)
    if config.patch_selector is not None:
        check_class_name(config, "patch_selector")
        check_options(config, "patch_selector")
