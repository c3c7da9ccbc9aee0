"""Loading, saving and initialization, as all models share them, and stock checkpoints of ViT."""

from os import PathLike
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import (
    WeightRenaming,
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.utils import logging

from .code_version import report_code, stamp
from .configuration_adaptive_vit import AdaptiveViTConfig
from .layers import AdaptiveViTAttention, AdaptiveViTLayer, initialize_dense
from .patch_embeddings import HybridPatchEmbeddings
from .registry import TABLES, classes_of, derives_from, fetch_classes, find_class, import_class
from .shipping import CannotTravel, NoFile, references, save_classes
from .sizes import has_frames


logger = logging.get_logger(__name__)


def initialize_own(module: nn.Module, std: float) -> None:
    """Lets a module of ours, or a position encoding of a user's, initialize its own parameters."""
    if derives_from(type(module), "Initialized"):
        module.reset_parameters(std)


class AdaptivePreTrainedModel(PreTrainedModel):
    """Loading and saving."""

    # The file of the classes that users load, and what the configuration of a saved model says of them.
    _code_file: ClassVar[str]
    _auto_map: ClassVar[dict[str, Any]]
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _input_embed_layer = "patch_embeddings"
    # The loss is a mean over the batch. Without this, Trainer takes `**kwargs` for a promise to divide by
    # `num_items_in_batch` and does not scale for gradient accumulation.
    accepts_loss_kwargs = False

    def set_dense_fraction(self, dense_fraction: float) -> None:
        """Loosens selection while training: 0 keeps what the configuration says, 1 keeps everything.

        In between the number of patches is K + dense_fraction * (N - K). Evaluation always measures the target.

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
        """Loads as in transformers; `trust_remote_code=True` also loads classes that came with the checkpoint.

        Weights are read from safetensors; from a pickle (`pytorch_model.bin`) only with `use_safetensors=False`, and then
        tensors alone.

        Raises:
            ValueError: if the checkpoint has such classes and is not trusted, or for `weights_only=False`.
            OSError: if there is no such checkpoint, or none in safetensors.
        """
        if kwargs.get("weights_only") not in (None, True):
            raise ValueError(
                "weights_only=False would run code that is in the weights: leave it out, tensors alone are loaded."
            )
        trust = bool(kwargs.pop("trust_remote_code", False))
        source = pretrained_model_name_or_path
        if isinstance(config, PreTrainedConfig):
            values = config.__dict__
        else:
            values, _ = cls.config_class.get_config_dict(config or source, **kwargs)
        for field, table in TABLES.items():
            name = kwargs.get(field)  # which the caller names himself, and so trusts
            if name is not None and name not in table and "." in name:
                import_class(field, name)
        values = {name: value for name, value in values.items() if name not in kwargs}
        fetch_classes(str(source), values, trust, **kwargs)
        report_code(str(source), values)
        kwargs.setdefault("use_safetensors", True)
        try:
            return super().from_pretrained(source, *args, config=config, **kwargs)
        except OSError as error:
            if kwargs["use_safetensors"] and "model.safetensors" in str(error):
                raise OSError(
                    f"{source} has no weights in model.safetensors. If it has a pickle (pytorch_model.bin), which could "
                    "hold code: scripts/convert.py reads the tensors of it, and nothing else, and writes safetensors. "
                    "use_safetensors=False here reads them in the same way."
                ) from error
            raise

    def save_pretrained(self, save_directory, is_main_process: bool = True, *args, **kwargs):
        """Saves as in transformers; the configuration names every Auto class, whichever class is saved.

        The files of a user's own encoding, selector or reducer are saved, too.

        Raises:
            CannotTravel: if such a file imports what could not come along; the weights are saved then, its code is not.
        """
        # transformers would undo the renaming of stock keys (see the ends of the files of models), and Trainer, which resumes with
        # a plain load_state_dict, would find nothing.
        kwargs.setdefault("save_original_format", False)
        auto_map = getattr(self.config, "auto_map", None) or {}
        if (
            type(self).__module__ == f"{__package__}.{self._code_file}"
        ):  # a user's subclass ships another file
            auto_map = {**auto_map, **self._auto_map}
        auto_map |= references(classes_of(self.base_model))
        if auto_map:
            self.config.auto_map = auto_map
        stamp(self.config)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if not is_main_process:
            return
        try:
            self._save_classes(save_directory)
        except (NoFile, OSError, SyntaxError) as error:
            logger.warning(f"The code of your classes was not saved with the model: {error}")
        except CannotTravel as error:
            error.add_note(
                f"The weights and the configuration were saved to {save_directory}, your code was not."
            )
            raise

    def _save_classes(self, folder: str | PathLike) -> None:
        classes = classes_of(self.base_model)
        if classes:
            save_classes(self.config, classes, folder)

    def _upload_modified_files(self, working_dir: str | PathLike, *args, **kwargs):
        # save_pretrained(push_to_hub=True) uploads before it returns. What nobody could load is not uploaded.
        self._save_classes(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)


MODULE = "modeling_adaptive_vit"
VIDEOS = "videos and volumes"
AUTO_MAP = {
    "AutoConfig": "configuration_adaptive_vit.AdaptiveViTConfig",
    "AutoModel": f"{MODULE}.AdaptiveViTModel",
    "AutoModelForImageClassification": f"{MODULE}.AdaptiveViTForImageClassification",
    "AutoModelForMaskedImageModeling": f"{MODULE}.AdaptiveViTForMaskedImageModeling",
    "AutoModelForPreTraining": f"{MODULE}.AdaptiveViTForPreTraining",
    "AutoModelForSemanticSegmentation": f"{MODULE}.AdaptiveViTForSemanticSegmentation",
    "AutoModelForVideoClassification": f"{MODULE}.AdaptiveViTForVideoClassification",
    "AutoBackbone": f"{MODULE}.AdaptiveViTBackbone",
    "AutoImageProcessor": {
        "torchvision": "image_processing_adaptive_vit.AdaptiveViTImageProcessor",
        "pil": "image_processing_pil_adaptive_vit.AdaptiveViTImageProcessorPil",
    },
}


class AdaptiveViTPreTrainedModel(AdaptivePreTrainedModel):
    """Loading, saving and initialization."""

    _code_file = MODULE
    _auto_map = AUTO_MAP
    # Whether a class is for videos and volumes alone; None for images as well.
    _videos: ClassVar[bool | None] = False
    config: AdaptiveViTConfig
    config_class = AdaptiveViTConfig
    base_model_prefix = "vit"
    # Not the embeddings: they hold what blocks ask of the position encoding, and Accelerate's FSDP2 shards the patch
    # embeddings by themselves.
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
                f"{type(self).__name__} is for {VIDEOS if self._videos else 'images'}, and num_frames={config.num_frames}. "
                + (
                    "Set num_frames, and give (B, T, C, H, W)."
                    if self._videos
                    else f"For {VIDEOS} there are AdaptiveViTForVideoClassification, AdaptiveViTModel and AdaptiveViTBackbone."
                )
            )
        if find_class(config, "position_encoding").has_bias:
            self._supports_flash_attn = False
        super().__init__(config, *args, **kwargs)

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

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs) -> None:
        """Enables checkpointing as in transformers, but refuses the reentrant variant where it would lose gradients."""
        reentrant = getattr(kwargs.get("gradient_checkpointing_func"), "keywords", {}).get("use_reentrant")
        for field, name in (
            ("token_reducer", "gumbel"),
            ("patch_selector", "perturbed"),
            ("patch_selector", "cross_attention"),
        ):
            if enable and reentrant and getattr(self.config, field) == name:
                raise ValueError(
                    f"{field}={name!r} has gradients beside the hidden states, which reentrant checkpointing loses: "
                    "pass {'use_reentrant': False}, which is the default."
                )
        super()._set_gradient_checkpointing(enable, **kwargs)

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs) -> None:
        """Sets the attention of the encoder, as in transformers; the backbone of a hybrid keeps its own."""
        backbone = self.config.backbone_config
        if backbone is not None and isinstance(attn_implementation, str):
            attn_implementation = {
                "": attn_implementation,
                "backbone_config": backbone._attn_implementation,
            }
        return super().set_attn_implementation(attn_implementation, *args, **kwargs)


# Stock ViT checkpoints, with the key names of transformers 4 or 5, load into ours. Registered here and not in the
# package, because this file travels with checkpoints and the package does not.
for _name in ("AdaptiveViTModel", "AdaptiveViTBackbone"):
    register_checkpoint_conversion_mapping(
        _name,
        [
            *get_checkpoint_conversion_mapping("ViTModel"),
            WeightRenaming(
                r"embeddings\.position_embeddings", "embeddings.position_encoding.position_embeddings"
            ),
        ],
        overwrite=True,
    )
