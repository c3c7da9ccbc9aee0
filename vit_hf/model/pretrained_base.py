"""What all models share, whatever their architecture: loading and saving, with code and users' classes."""

from contextvars import ContextVar
from os import PathLike

from transformers import PreTrainedConfig, PreTrainedModel

from .checkpoint_code import IS_REMOTE, SavesCode, name_classes, report_code
from .user_classes import TABLES, fetch_classes, import_class


is_saving: ContextVar[bool] = ContextVar("is_saving", default=False)


class AdaptivePreTrainedModel(SavesCode, PreTrainedModel):
    """Loading and saving."""

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

    def set_selection_relaxation(self, relaxation: float) -> None:
        """Loosens selection while training: 0 keeps what the configuration says, 1 keeps everything.

        In between the number of patches is K + relaxation * (N - K). Evaluation always measures the target.

        Raises:
            ValueError: if `relaxation` is outside [0, 1].
        """
        if not 0 <= relaxation <= 1:
            raise ValueError(f"relaxation={relaxation} must lie in [0, 1].")
        for module in self.modules():
            if hasattr(module, "selection_relaxation"):
                module.selection_relaxation = relaxation

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """As in transformers; `trust_remote_code=True` also lets classes load that came with the checkpoint.

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
        report_code(str(source), values, cls.config_class.code_file)
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

    @classmethod
    def is_remote_code(cls) -> bool:
        """Returns True, so that transformers asks no service to convert pickles, and False where it would copy files.

        The package saves a generated file instead.
        """
        return IS_REMOTE or not is_saving.get()

    def save_pretrained(self, save_directory: str | PathLike, is_main_process: bool = True, *args, **kwargs):
        """Saves as in transformers; the configuration names every Auto class, whichever class was saved.

        The files of a user's own encoding, selector or reducer are saved, too.

        Raises:
            RemoteCodeError: if such a file has imports that fail elsewhere; only its code is not saved then.
        """
        # transformers would undo the renaming of stock keys (see the ends of the files of models), and Trainer,
        # which resumes with a plain load_state_dict, would find nothing.
        kwargs.setdefault("save_original_format", False)
        name_classes(self.config)
        token = is_saving.set(True)
        try:
            super().save_pretrained(save_directory, *args, is_main_process=is_main_process, **kwargs)
        finally:
            is_saving.reset(token)
