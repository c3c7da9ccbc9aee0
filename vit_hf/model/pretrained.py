"""Loading, saving and initialization, as all models share them, and stock checkpoints of ViT."""

import copy
from collections.abc import Iterable
from contextvars import ContextVar
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
from .computed_tensors import restore, versions
from .configuration_adaptive_vit import AdaptiveViTConfig
from .grid_tables import check_measures, make_room, resample, tables_to_resample
from .layers import AdaptiveViTAttention, AdaptiveViTLayer, initialize_dense
from .options import keep_options, options_of, type_of
from .patch_embeddings import HybridPatchEmbeddings
from .registry import TABLES, derives_from, fetch_classes, find_class, import_class
from .sizes import has_frames, native_grid


logger = logging.get_logger(__name__)
# Fields that size tables of positions.
GRID_FIELDS = {"image_size", "patch_size", "num_frames", "tubelet_size", "window_size"}
# Configuration of the checkpoint that is being loaded.
is_saving: ContextVar[bool] = ContextVar("is_saving", default=False)
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
    """Loading and saving."""

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
                    "hold code: scripts/convert.py reads the tensors of it, and nothing else, "
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
        restore(self, before)

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
        check_measures(wanted, stored)
        rotates = type_of(wanted.position_encoding) in ("rotary", "rotary_mixed", "learned_rotary")
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
