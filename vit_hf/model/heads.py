"""Heads: poolings, the classifier, losses, and the decoder of masked images."""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_checks import check_problem_type
from .layers import ACTIVATIONS, SMALLEST_SIZE, AdaptiveViTMLP, Initialized


class Pooling(nn.Module):
    """Pools a sequence for the classifier: the CLS token, `(B, D)`."""

    # Of how many vectors the answer consists.
    num_vectors = 1

    def __init__(self, config):
        super().__init__()

    def forward(
        self, hidden_states: torch.Tensor, num_tokens: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: `(B, T, D)`.
            num_tokens: M, how many of the last tokens stand for patches.
            weights: `(B, M)` for how many each stands, 0 for one that does not count; None if all stand for
                one.
        """
        return hidden_states[:, 0]


class MeanPooling(Pooling):
    """Mean `(B, D)` over the tokens that stand for patches."""

    def forward(
        self, hidden_states: torch.Tensor, num_tokens: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        tokens = hidden_states[:, -num_tokens:]
        if weights is None:
            return tokens.mean(dim=1)
        weights = weights.unsqueeze(-1).to(tokens)
        return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class ClsAndMeanPooling(MeanPooling):
    """CLS token and mean over patches beside each other, `(B, 2D)`, as DINOv2's classifier."""

    num_vectors = 2

    def forward(
        self, hidden_states: torch.Tensor, num_tokens: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        mean = super().forward(hidden_states, num_tokens, weights)
        return torch.cat((hidden_states[:, 0], mean), dim=-1)


class ClsAndRegisterPooling(Pooling):
    """CLS token and first register beside each other, `(B, 2D)`; DeiT's distillation token is a register."""

    num_vectors = 2

    def forward(
        self, hidden_states: torch.Tensor, num_tokens: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        return hidden_states[:, :2].flatten(1)


class AttentionPooling(Initialized, Pooling):
    """A learned query attends to the tokens that stand for patches, then a feed-forward network, `(B, D)`.

    "Scaling Vision Transformers" (Zhai et al., 2022), section 3.2, MAP head; named as in transformers'
    SigLIP.
    """

    def __init__(self, config):
        super().__init__(config)
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = nn.MultiheadAttention(
            config.hidden_size, config.num_attention_heads, batch_first=True
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AdaptiveViTMLP(config)

    def forward(
        self, hidden_states: torch.Tensor, num_tokens: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        tokens = hidden_states[:, -num_tokens:]
        probe, mask = self.probe.expand(tokens.shape[0], -1, -1), None
        if weights is not None:
            # Those that stand for several count as often; one that does not count leaves a trace
            # only where a gradient decides whether it counts.
            if weights.requires_grad:
                weights = weights + SMALLEST_SIZE
            mask = weights.log().to(tokens.dtype)[:, None]  # (B, 1, M)
            mask = mask.repeat_interleave(self.attention.num_heads, dim=0)
        state = self.attention(probe, tokens, tokens, attn_mask=mask, need_weights=False)[0]
        return (state + self.mlp(self.layernorm(state)))[:, 0]

    def reset_parameters(self, std: float) -> None:
        init.trunc_normal_(self.probe, mean=0.0, std=std)


class AdaptiveViTPooler(Pooling):
    """A dense layer on the CLS token, as in transformers' ViT."""

    def __init__(self, config):
        super().__init__(config)
        self.dense = nn.Linear(config.hidden_size, config.pooler_output_size)
        self.activation = ACTIVATIONS[config.pooler_act]()

    def forward(
        self, hidden_states: torch.Tensor, num_tokens: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        return self.activation(self.dense(super().forward(hidden_states, num_tokens, weights)))


POOLINGS: dict[str, type[Pooling]] = {
    "cls": Pooling,
    "mean": MeanPooling,
    "cls+mean": ClsAndMeanPooling,
    "cls+register": ClsAndRegisterPooling,
    "map": AttentionPooling,
}


class ImageClassifier:
    """The classifier that models of all architectures share; a mixin."""

    def add_classifier(self, config, num_vectors: int = 1, hidden_size: int | None = None) -> None:
        """Adds the layers, once the model has its encoder.

        Args:
            config: of the model.
            num_vectors: of hidden size each, that pooling makes of the tokens.
            hidden_size: of a dense layer with tanh before the classifier; None for no such layer.
        """
        # transformers guesses it by the name of the class, and of a subclass might guess a language model's.
        self.loss_type = "ForImageClassification"
        self.num_labels = config.num_labels
        size = config.hidden_size * num_vectors
        self.pre_classifier = None if hidden_size is None else nn.Linear(size, hidden_size)
        size = size if hidden_size is None else hidden_size
        self.classifier = nn.Linear(size, config.num_labels) if config.num_labels else nn.Identity()

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits `(B, num_labels)` of pooled hidden states."""
        if self.pre_classifier is not None:
            pooled = self.pre_classifier(pooled).tanh()
        return self.classifier(pooled)


def check_outputs(config, num_outputs: int) -> None:
    """Checks that a configuration, which may have been changed, has as many labels as the model has outputs.

    Raises:
        ValueError: naming both numbers; or if the problem type does not fit.
    """
    if config.num_labels != num_outputs:
        raise ValueError(
            f"The configuration has num_labels={config.num_labels}, and the model {num_outputs} "
            "outputs, as it was built "
            "with: load it with from_pretrained(..., num_labels=..., "
            "ignore_mismatched_sizes=True) for a new head."
        )
    check_problem_type(config)


def make_pooler(config) -> Pooling | None:
    """The module behind `pooler_output`, see `pooler` of the configuration."""
    if config.pooler is not None:
        return {"dense": AdaptiveViTPooler, **POOLINGS}[config.pooler](config)
    if config.pooling == "map":
        return AttentionPooling(config)
    return AdaptiveViTPooler(config) if config.use_cls_token else None


def check_labels(labels: torch.Tensor, num_labels: int, problem_type: str | None) -> None:
    """Refuses labels that stand for nothing (on a GPU a wrong index would kill the process instead).

    Raises:
        ValueError: naming the label and the legal range.
    """
    if problem_type == "regression" or (problem_type is None and num_labels == 1):
        wrong, legal = ~torch.isfinite(labels), "finite numbers"
    elif labels.is_floating_point():
        wrong, legal = ~((labels >= 0) & (labels <= 1)), "0 to 1 for each class"
    else:
        wrong = (labels != -100) & ((labels < 0) | (labels >= num_labels))
        legal = f"0..{num_labels - 1} (-100 marks one to ignore)"
    if wrong.any():
        raise ValueError(
            f"Label {labels[wrong][0].item()} is outside {legal}. The model has num_labels={num_labels} and "
            f"problem_type={problem_type!r}: set them when loading it, or mend the labels."
        )


def classification_loss(model: nn.Module, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The loss of a classifier by its `config.problem_type`, as transformers computes it; also of class
    probabilities.

    Raises:
        ValueError: if a label is outside the classes, or if labels do not fit the outputs.
    """
    problem = model.config.problem_type
    labels = labels.to(logits.device)
    if problem in ("multi_label_classification", "regression"):
        labels = labels.to(logits.dtype)
    if not torch.compiler.is_compiling():
        check_outputs(model.config, model.num_labels)
        check_labels(labels, model.num_labels, problem)
    if problem == "regression" and labels.numel() != logits.numel():
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit a regression of "
            f"num_labels={model.num_labels} outputs: give "
            f"{tuple(logits.shape)}."
        )
    if problem == "single_label_classification" and labels.is_floating_point():
        return nn.functional.cross_entropy(logits.float(), labels.float())
    return model.loss_function(labels, logits, model.config)


def loss_per_image(labels: torch.Tensor, logits: torch.Tensor, problem_type: str) -> torch.Tensor:
    """The loss of each image `(B,)` in float32; 0 for a label of -100."""
    logits = logits.float()
    if problem_type == "regression":
        return (logits - labels.view_as(logits).float()).square().mean(dim=-1)
    if problem_type == "multi_label_classification":
        losses = nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        return losses.mean(dim=-1)
    labels = labels.float() if labels.is_floating_point() else labels.view(-1)
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def distillation_loss(logits: torch.Tensor, teacher: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Divergence of the student's class probabilities from the teacher's, averaged over images.

    Of several labels an image, each is a yes or a no, and their divergences are averaged.
    """
    if problem_type == "multi_label_classification":
        logits, teacher = (torch.stack((states, -states), dim=-1).float() / 2 for states in (logits, teacher))
        student, teacher = logits.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
        return nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1).mean()
    student, teacher = logits.float().log_softmax(dim=-1), teacher.float().log_softmax(dim=-1)
    return nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def token_distillation_loss(
    hidden_states: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """Mean squared difference of hidden states `(B, T, D)` over the last tokens, by their weights `(B,
    M)`."""
    difference = (hidden_states.float() - teacher.float()).square().mean(dim=-1)  # (B, T)
    if weights is None:
        return difference.mean()
    weights = weights.detach()
    difference = difference[:, -weights.shape[1] :]
    return (difference * weights).sum() / weights.sum().clamp(min=1)


class MaskedImageDecoder(nn.Sequential):
    """One 1x1 convolution and a pixel shuffle (SimMIM, Xie et al., 2021), named as in transformers' ViT."""

    def __init__(self, config):
        stride = config.encoder_stride
        super().__init__(
            nn.Conv2d(config.hidden_size, stride**2 * config.num_channels, kernel_size=1),
            nn.PixelShuffle(stride),
        )


def masked_reconstruction_loss(
    pixel_values: torch.Tensor,
    reconstruction: torch.Tensor,
    masked: torch.Tensor,
    patch_size: tuple[int, int],
) -> torch.Tensor:
    """Mean absolute error over the pixels of masked patches.

    Args:
        pixel_values, reconstruction: `(B, C, H, W)`; compared where both are, as images may end in the middle
            of a patch.
        masked: `(B, R, S)` bool, one for each patch; the last row and column may reach beyond the image.
        patch_size: height and width in pixels.
    """
    height, width = (
        min(sides) for sides in zip(pixel_values.shape[2:], reconstruction.shape[2:], strict=True)
    )
    pixel_values, reconstruction = pixel_values[..., :height, :width], reconstruction[..., :height, :width]
    mask = masked.repeat_interleave(patch_size[0], 1).repeat_interleave(patch_size[1], 2).unsqueeze(1)
    mask = mask[..., : pixel_values.shape[-2], : pixel_values.shape[-1]].to(reconstruction.device)
    error = (pixel_values.to(reconstruction.device) - reconstruction).abs()
    error = error.float() * mask  # half precision could not hold the sum
    return error.sum() / (mask.sum() + 1e-5) / pixel_values.shape[1]
