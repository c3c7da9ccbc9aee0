"""Which stages a backbone returns."""

from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin


class StagesConfigMixin(BackboneConfigMixin):
    """As in transformers, with the last stage by default, however many stages the configuration has by
    then."""

    @property
    def out_features(self) -> list[str]:
        """Names of the stages."""
        return self.stage_names[-1:] if self._out_features is None else self._out_features

    @out_features.setter
    def out_features(self, out_features: list[str] | None) -> None:
        self._set_stages(out_features, None)

    @property
    def out_indices(self) -> list[int]:
        """Indices of the stages whose feature maps the backbone returns."""
        return [len(self.stage_names) - 1] if self._out_indices is None else self._out_indices

    @out_indices.setter
    def out_indices(self, out_indices: list[int] | tuple[int, ...] | None) -> None:
        self._set_stages(None, out_indices)

    def _set_stages(
        self, out_features: list[str] | None, out_indices: list[int] | tuple[int, ...] | None
    ) -> None:
        if out_features is None and out_indices is None:
            self._out_features = self._out_indices = None
        else:
            self.set_output_features_output_indices(out_features, out_indices)


class StagesMixin(BackboneMixin):
    """As in transformers, with the stages that the configuration says, by default the last."""

    out_features = BackboneMixin.out_features.getter(lambda self: self.config.out_features)
    out_indices = BackboneMixin.out_indices.getter(lambda self: self.config.out_indices)
