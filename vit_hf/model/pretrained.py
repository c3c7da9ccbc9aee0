"""Loading, saving and initialization, as all models share them, and stock checkpoints of ViT.

Tables sized by a grid are resampled for another grid, never left random: an encoding with such a table has
`resample_table`; encodings that measure positions in patches of the native grid refuse another one.

transformers builds models without storage and fills in what a checkpoint has. Non-persistent buffers, and
tensors that are plain attributes, are in no checkpoint: they are computed again here, by building the class
once more.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import fields
from functools import partial
from os import PathLike
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import (
    WeightRenaming,
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.utils import logging

from .checkpoint_code import IS_REMOTE, SavesCode, name_classes, report_code
from .configuration_adaptive_vit import AdaptiveViTConfig
from .layers import AdaptiveViTAttention, AdaptiveViTLayer, initialize_dense
from .options import keep_options, options_of, type_of
from .patch_embeddings import HybridPatchEmbeddings
from .positions import POSITION_ENCODINGS, VOLUME_ENCODINGS
from .registry import TABLES, classes_of, derives_from, fetch_classes, find_class, import_class
from .sizes import has_frames, native_grid


logger = logging.get_logger(__name__)


# Encodings of a model, as its configuration gives them.
ENCODINGS = {
    "position_encoding": lambda config: getattr(config, "position_encoding", None),
    "decoder_position_encoding": lambda config: options_of(getattr(config, "masked_autoencoder", None)).get(
        "decoder_position_encoding"
    ),
}

# (module, name of its parameter, shape in the checkpoint)
Table = tuple[nn.Module, str, tuple[int, ...]]


def tables_to_resample(model: nn.Module, mismatched: set[tuple[str, Any, Any]]) -> dict[str, Table]:
    """Parameters of position encodings, by name, whose size alone differs from the checkpoint's.

    Raises:
        ValueError: if one of them cannot be resampled, saying what to do.
    """
    tables = {}
    for name, found, needed in mismatched:
        path, _, parameter = name.rpartition(".")
        module = model.get_submodule(path)
        owner = encoding_of(model, path)
        if owner is None or len(found) != len(needed):
            continue
        if sum(one != other for one, other in zip(found, needed, strict=True)) != 1:
            continue  # another width or depth: a different model, and no other grid
        if not hasattr(module, "resample_table"):
            raise ValueError(
                f"{name} has the shape {tuple(found)} in the checkpoint, and the model needs "
                f"{tuple(needed)}, which "
                f"{type(owner).__name__} cannot resample. Load the checkpoint without changing "
                "image_size (and num_frames, "
                f"patch_size, window_size), or give {type(owner).__name__} a method "
                "resample_table(name, table, grid)."
            )
        tables[name] = (module, parameter, tuple(found))
    return tables


def encoding_of(model: nn.Module, path: str) -> nn.Module | None:
    """The position encoding at a path or above it."""
    while path:
        module = model.get_submodule(path)
        if derives_from(type(module), "PositionEncoding"):
            return module
        path = path.rpartition(".")[0]
    return None


def make_room(tables: Mapping[str, Table]) -> None:
    """Gives modules the parameters of the checkpoint's shapes, to be loaded."""
    for module, parameter, shape in tables.values():
        own = getattr(module, parameter)
        empty = nn.Parameter(own.new_empty(shape, device="meta"), own.requires_grad)
        setattr(module, parameter, empty)


@torch.no_grad()
def resample(tables: Mapping[str, Table], stored: Any) -> None:
    """Replaces loaded tables by those of the model's grid.

    Args:
        tables: of `tables_to_resample`.
        stored: configuration of the checkpoint, or None.

    Raises:
        ValueError: if a table is that of no grid.
    """
    for name, (module, parameter, shape) in tables.items():
        loaded = getattr(module, parameter)
        grid = None if stored is None else module.grid_in(stored)
        table = module.resample_table(parameter, loaded.float(), grid)
        new = nn.Parameter(table.to(loaded.dtype), loaded.requires_grad)
        new._is_hf_initialized = True  # or it would be drawn anew
        setattr(module, parameter, new)
        logger.info(f"{name} was resampled from {shape} to {tuple(new.shape)}.")


def check_native_grid(config, stored) -> None:
    """Refuses another native grid for encodings whose weights hold for one alone.

    Raises:
        ValueError: naming the fields.
    """
    if native_grid(config) == native_grid(stored):
        return
    for field, part_of in ENCODINGS.items():
        name = type_of(part_of(config))
        if name is None or name != type_of(part_of(stored)):
            continue
        encoding = {**POSITION_ENCODINGS, **VOLUME_ENCODINGS}.get(name)  # a user's may not be imported yet
        if encoding is not None and encoding.holds_for_native_grid:
            raise ValueError(
                f"{field}={name!r} measures positions in patches of the grid that "
                f"image_size={stored.image_size} and patch_size={stored.patch_size} (and num_frames) of the "
                f"checkpoint give, and another image_size ({config.image_size}) would move all of them. "
                "Leave image_size out: the model takes images of any size."
            )


# Whose classes restore their own buffers, or have none.
OURS = ("torch", "transformers", "timm", __package__.partition(".")[0])


def versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Identity and version of each non-persistent buffer, which change where it is filled."""
    return {name: _version(buffer) for name, buffer in model.named_non_persistent_buffers()}


def _version(tensor: torch.Tensor) -> tuple[int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def own_parts(model: nn.Module) -> list[tuple[str, nn.Module, Callable[[], nn.Module]]]:
    """Name, module and builder of each part of a model whose class is the user's own."""
    config, own, parts = model.base_model.config, tuple(classes_of(model.base_model).values()), []
    for name, module in model.named_modules():
        if isinstance(module, own):
            parent, _, index = name.rpartition(".")
            arguments = (int(index),) if parent.endswith("reducers") else ()
            parts.append((name, module, partial(type(module), config, *arguments)))
    return parts


@torch.no_grad()
def recompute_missing(model: nn.Module, before: dict[str, tuple[int, int]]) -> None:
    """Recomputes non-persistent buffers and plain tensors that loading left empty; warns where it cannot.

    Args:
        before: `versions` of when the buffers were empty.
    """
    empty = {name for name, version in versions(model).items() if before.get(name) == version}
    random = set()
    for prefix, part, build in own_parts(model):
        inside = {name for name in empty if name.startswith(f"{prefix}.")}
        attributes = _plain_tensors(part)
        if not inside and not attributes:
            continue
        first, second = (_built(build, seed) for seed in (0, 1))
        for name in inside:
            path = name.removeprefix(f"{prefix}.")
            value, again = first.get_buffer(path), second.get_buffer(path)
            part.get_buffer(path).copy_(value)
            if not torch.equal(value, again):
                random.add(name)
        for path, attribute in attributes:
            setattr(part.get_submodule(path), attribute, getattr(first.get_submodule(path), attribute))
        empty -= inside
    if random:
        logger.warning(
            f"The non-persistent buffers {sorted(random)} are random and were not saved: the "
            "loaded model has other numbers "
            "than the saved one. Register them with persistent=True, or draw them from a "
            "generator with a fixed seed."
        )
    unknown = {name for name in empty if _is_foreign(model, name)}
    if unknown:
        logger.warning(
            f"The non-persistent buffers {sorted(unknown)} are in no checkpoint and hold garbage "
            "now. Register them with "
            "persistent=True, compute them in forward, or fill them in _init_weights of your class."
        )


def _built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return build()


def _plain_tensors(part: nn.Module) -> list[tuple[str, str]]:
    """Path of the submodule and name of each tensor without storage that is a plain attribute."""
    return [
        (path, name)
        for path, module in part.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor) and value.is_meta
    ]


def _is_foreign(model: nn.Module, name: str) -> bool:
    owner = type(model.get_submodule(name.rpartition(".")[0]))
    return owner.__module__.partition(".")[0] not in OURS


# Fields that size tables of positions.
GRID_FIELDS = {"image_size", "patch_size", "num_frames", "tubelet_size", "window_size"}
# True while `save_pretrained` runs.
is_saving: ContextVar[bool] = ContextVar("is_saving", default=False)
# Configuration of the checkpoint that is being loaded.
_STORED: ContextVar[PreTrainedConfig | None] = ContextVar("stored", default=None)


def module_names(model: nn.Module, saved: Iterable[str]) -> dict[str, str]:
    """The name in the model of each name in a saved file, whose names are those of the stock architecture."""
    renamings = [
        renaming
        for renaming in get_model_conversion_mapping(model, add_legacy=False)
        if isinstance(renaming, WeightRenaming)
    ]
    names = {}
    for name in saved:
        names[name] = name
        for renaming in renamings:
            names[name], _ = renaming.rename_source_key(names[name])
    return names


def initialize_own(module: nn.Module, std: float) -> None:
    """Lets a module of ours, or a position encoding of a user's, initialize its own parameters."""
    if derives_from(type(module), "Initialized"):
        module.reset_parameters(std)


class AdaptivePreTrainedModel(SavesCode, PreTrainedModel):
    """Base of all models: loading, saving and initialization."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Of the configuration, as they were when they were checked.
    _checked_fields: dict[str, Any] | None = None
    # The loss is a mean over the batch. Without this, Trainer takes `**kwargs` for a promise to divide by
    # `num_items_in_batch` and does not scale for gradient accumulation.
    accepts_loss_kwargs = False

    def check_config(self) -> None:
        """Checks the configuration before the model runs, if a field was set since; else compares
        references."""
        if torch.compiler.is_compiling() or vars(self.config) == self._checked_fields:
            return
        self.config.validate_architecture()
        self._checked_fields = dict(vars(self.config))

    def get_input_embeddings(self) -> nn.Module:
        """The projection of the patches: hooks on it, such as PEFT's, get a tensor `(B, N, D)`."""
        return self.base_model.embeddings.patch_embeddings.projection

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the projection of the patches."""
        self.base_model.embeddings.patch_embeddings.projection = value

    def set_dense_fraction(self, dense_fraction: float) -> None:
        """Loosens selection while training: 0 keeps what the configuration says, 1 keeps everything.

        In between the number of patches is K + dense_fraction * (N - K). Evaluation always measures the
        target.

        Raises:
            ValueError: if `dense_fraction` is outside [0, 1].
        """
        if not 0 <= dense_fraction <= 1:
            raise ValueError(f"dense_fraction={dense_fraction} must lie in [0, 1].")
        for module in self.modules():
            if hasattr(module, "dense_fraction"):
                module.dense_fraction = dense_fraction

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """As in transformers; `trust_remote_code=True` also lets classes load that came with the checkpoint.

        Weights are read from safetensors; from a pickle (`pytorch_model.bin`) only with
        `use_safetensors=False`, and then tensors alone.

        Raises:
            ValueError: if the checkpoint has such classes and is not trusted, or for `weights_only=False`.
            OSError: if there is no such checkpoint, or none in safetensors.
        """
        if kwargs.get("weights_only") not in (None, True):
            raise ValueError(
                "weights_only=False would run code that is in the weights: leave it out, tensors "
                "alone are loaded."
            )
        trust = bool(kwargs.pop("trust_remote_code", False))
        source = pretrained_model_name_or_path
        if isinstance(config, PreTrainedConfig):
            values = config.__dict__
        else:
            values, _ = cls.config_class.get_config_dict(config or source, **kwargs)
        for field, table in TABLES.items():
            name = type_of(kwargs.get(field))  # which the caller names himself, and so trusts
            if name is not None and name not in table and "." in name:
                import_class(field, name)
        stored = cls._stored_config(source, config, kwargs)
        if stored is not None:
            wanted = copy.deepcopy(config if isinstance(config, PreTrainedConfig) else stored)
            for name in GRID_FIELDS & kwargs.keys():
                setattr(wanted, name, kwargs[name])
            kept = cls._fields_to_keep(wanted, stored)
            if isinstance(config, PreTrainedConfig):
                for name, value in kept.items():
                    setattr(wanted, name, value)
                config = wanted
            else:
                kwargs = kept | keep_options(kept, kwargs, kept)
        values = {name: value for name, value in values.items() if name not in kwargs}
        fetch_classes(str(source), values, trust, **kwargs)
        report_code(str(source), values, cls.config_class.code_file)
        kwargs.setdefault("use_safetensors", True)
        token = _STORED.set(stored)
        try:
            loaded = super().from_pretrained(source, *args, config=config, **kwargs)
        except OSError as error:
            if kwargs["use_safetensors"] and "model.safetensors" in str(error):
                raise OSError(
                    f"{source} has no weights in model.safetensors. If it has a pickle "
                    "(pytorch_model.bin), which could "
                    "hold code: vit-hf convert reads the tensors of it, and nothing else, "
                    "and writes safetensors. "
                    "use_safetensors=False here reads them in the same way."
                ) from error
            raise
        finally:
            _STORED.reset(token)
        # Saved again under stock names, whatever names were loaded.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._weight_conversions = None
        return loaded

    @classmethod
    def _stored_config(
        cls, source: str | PathLike | None, config: Any, kwargs: dict[str, Any]
    ) -> PreTrainedConfig | None:
        """The checkpoint's own configuration where fields that size tables may differ from it; None if
        there is none."""
        if source is None or not (isinstance(config, PreTrainedConfig) or GRID_FIELDS & kwargs.keys()):
            return None
        try:
            values, _ = cls.config_class.get_config_dict(source, **kwargs)
            return cls.config_class.from_dict(values)
        except (OSError, ValueError, StrictDataclassError):
            return None

    @classmethod
    def _fields_to_keep(cls, wanted: PreTrainedConfig, stored: PreTrainedConfig) -> dict[str, Any]:
        """Fields that keep what positions meant in the checkpoint, for a model of another grid.

        Raises:
            ValueError: if there are none for its position encoding.
        """
        return {}

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        """As in transformers; tables sized by another grid than the model's are resampled."""
        load = PreTrainedModel._load_pretrained_model
        inputs = (model, state_dict, checkpoint_files, load_config, *args)
        info, index = load(*inputs, **kwargs)
        tables = tables_to_resample(model, info.mismatched_keys)
        if tables:
            make_room(tables)
            info, index = load(*inputs, **kwargs)
            resample(tables, _STORED.get())
        return info, index

    def _initialize_missing_keys(self, *args, **kwargs) -> None:
        before = versions(self)
        super()._initialize_missing_keys(*args, **kwargs)
        recompute_missing(self, before)

    @classmethod
    def is_remote_code(cls) -> bool:
        """Returns True, so that transformers asks no service to convert pickles, and False where it would
        copy files.

        The package saves a generated file instead.
        """
        return IS_REMOTE or not is_saving.get()

    def save_pretrained(self, save_directory: str | PathLike, is_main_process: bool = True, *args, **kwargs):
        """Saves as in transformers; the configuration names every Auto class, whichever class was saved.

        Weights have the names of the stock architecture, as transformers saves its own: a dense model with
        learned positions opens in transformers' `ViTForImageClassification`.

        The files of a user's own encoding, selector or reducer are saved, too.

        Raises:
            RemoteCodeError: if such a file has imports that fail elsewhere; only its code is not saved then.
        """
        name_classes(self.config)
        token = is_saving.set(True)
        try:
            super().save_pretrained(save_directory, *args, is_main_process=is_main_process, **kwargs)
        finally:
            is_saving.reset(token)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Trainer resumes by a plain load_state_dict of a saved file.
        own = [name for name in state_dict if name.startswith(prefix)]
        names = module_names(self, (name.removeprefix(prefix) for name in own))
        for name in own:
            state_dict[prefix + names[name.removeprefix(prefix)]] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


VIDEOS = "videos and volumes"


class AdaptiveViTPreTrainedModel(AdaptivePreTrainedModel):
    """Loading, saving and initialization."""

    # Whether a class is for videos and volumes alone; None for images as well.
    _videos: ClassVar[bool | None] = False
    config: AdaptiveViTConfig
    config_class = AdaptiveViTConfig
    base_model_prefix = "vit"
    # Not the embeddings: they hold what blocks ask of the position encoding, and Accelerate's FSDP2 shards
    # the patch embeddings by themselves.
    _no_split_modules = ["AdaptiveViTLayer"]
    _supports_flash_attn = True
    # Counts training steps in checkpoints of a subclass; no other class has a use for it.
    _keys_to_ignore_on_load_unexpected = [r"^elastic_steps$"]
    _supports_flex_attn = True
    _can_record_outputs = {
        "hidden_states": AdaptiveViTLayer,
        "attentions": AdaptiveViTAttention,
    }

    def __init__(self, config: AdaptiveViTConfig, *args, **kwargs):
        # from_pretrained(..., field=value) sets fields one by one after the configuration was checked.
        config.validate_architecture()
        if self._videos is not None and self._videos != has_frames(config):
            raise ValueError(
                f"{type(self).__name__} is for {VIDEOS if self._videos else 'images'}, and "
                f"num_frames={config.num_frames}. "
                + (
                    "Set num_frames, and give (B, T, C, H, W)."
                    if self._videos
                    else f"For {VIDEOS} there are AdaptiveViTForVideoClassification, AdaptiveViTModel "
                    "and AdaptiveViTBackbone."
                )
            )
        if find_class(config, "position_encoding").has_bias:
            self._supports_flash_attn = False
        super().__init__(config, *args, **kwargs)
        self._checked_fields = dict(vars(self.config))

    @classmethod
    def _fields_to_keep(cls, wanted: AdaptiveViTConfig, stored: AdaptiveViTConfig) -> dict[str, Any]:
        check_native_grid(wanted, stored)
        encoding = POSITION_ENCODINGS.get(type_of(wanted.position_encoding))
        rotates = encoding is not None and "reference_grid" in {
            entry.name for entry in fields(encoding.Options)
        }
        options = options_of(wanted.position_encoding)
        if not rotates or options.get("coordinates") != "native" or options.get("reference_grid") is not None:
            return {}
        # Positions are spread over the grid of pretraining, as EVA-02 does.
        return {"position_encoding": wanted.position_encoding | {"reference_grid": list(native_grid(stored))}}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        initialize_dense(module, self.config.initializer, self.config.initializer_range)
        initialize_own(module, self.config.initializer_range)

    @torch.no_grad()
    def _initialize_missing_keys(self, *args, **kwargs) -> None:
        super()._initialize_missing_keys(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, HybridPatchEmbeddings):
                with init.guard_torch_init_functions():
                    module.reset_missing()

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs) -> None:
        """As in transformers, for the encoder; the backbone of a hybrid keeps what it has."""
        backbone = self.config.backbone_config
        if backbone is not None and isinstance(attn_implementation, str):
            attn_implementation = {
                "": attn_implementation,
                "backbone_config": backbone._attn_implementation,
            }
        return super().set_attn_implementation(attn_implementation, *args, **kwargs)


# Stock ViT checkpoints, with the key names of transformers 4 or 5, load into ours, and ours are saved with
# the former, as stock ViT's are. Registered here and not in the package, because this code is saved with
# checkpoints and the package is not.
for _model in ("AdaptiveViTModel", "AdaptiveViTBackbone"):
    register_checkpoint_conversion_mapping(
        _model,
        [
            *get_checkpoint_conversion_mapping("ViTModel"),
            WeightRenaming(
                r"embeddings\.position_embeddings", "embeddings.position_encoding.position_embeddings"
            ),
        ],
        overwrite=True,
    )
