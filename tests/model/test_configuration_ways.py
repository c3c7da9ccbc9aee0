"""The same checks of a configuration, whichever way its fields arrive."""

import json
import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from tests.helpers.models import TINY, TINY_SWIN, tiny_config, tiny_swin_config
from vit_hf import (
    AdaptiveSwinConfig,
    AdaptiveSwinForImageClassification,
    AdaptiveViTConfig,
    AdaptiveViTForElasticImageClassification,
    AdaptiveViTForImageClassification,
    AdaptiveViTForSemanticSegmentation,
    AdaptiveViTForVideoClassification,
    AdaptiveViTImageProcessor,
    AdaptiveViTImageProcessorPil,
    AdaptiveViTModel,
    PositionEncoding,
    register_position_encoding,
)
from vit_hf.hub.remote_code import NoSourceFileError
from vit_hf.model.positions import POSITION_ENCODINGS


FAMILIES = {
    "vit": (AdaptiveViTForImageClassification, AdaptiveViTConfig, TINY, (3, 32, 32)),
    "swin": (AdaptiveSwinForImageClassification, AdaptiveSwinConfig, TINY_SWIN, (3, 32, 32)),
    "video": (
        AdaptiveViTForVideoClassification,
        AdaptiveViTConfig,
        {**TINY, "num_frames": 4},
        (4, 3, 32, 32),
    ),
    "elastic": (
        AdaptiveViTForElasticImageClassification,
        AdaptiveViTConfig,
        {**TINY, "elastic_space": {"depths": [2, 3]}},
        (3, 32, 32),
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
PROCESSORS = {"torchvision": AdaptiveViTImageProcessor, "pil": AdaptiveViTImageProcessorPil}
every_processor = pytest.mark.parametrize("processor_class", PROCESSORS.values(), ids=PROCESSORS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of each family."""
    folders = {}
    for name, (model_class, config_class, fields, _) in FAMILIES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        model_class(config_class(**fields)).save_pretrained(folders[name])
    return folders


def by_constructor(family, fields, saved, tmp_path):
    model_class, config_class, own, _ = FAMILIES[family]
    return model_class(config_class(**{**without_labels(own), **fields}))


def by_keywords(family, fields, saved, tmp_path):
    return FAMILIES[family][0].from_pretrained(saved[family], ignore_mismatched_sizes=True, **fields)


def by_auto_class(family, fields, saved, tmp_path):
    if family == "video" or family == "elastic":
        return by_keywords(family, fields, saved, tmp_path)
    return AutoModelForImageClassification.from_pretrained(
        saved[family], ignore_mismatched_sizes=True, **fields
    )


def by_assignment(family, fields, saved, tmp_path):
    model_class, config_class, own, _ = FAMILIES[family]
    config = config_class(**own)
    for name, value in fields.items():
        setattr(config, name, value)
    return model_class(config)


def by_assignment_to_model(family, fields, saved, tmp_path):
    model_class, config_class, own, _ = FAMILIES[family]
    model = model_class(config_class(**own))
    for name, value in fields.items():
        setattr(model.config, name, value)
    return model


def by_file(family, fields, saved, tmp_path):
    stored = json.loads((saved[family] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**without_labels(stored), **fields}))
    return FAMILIES[family][0](FAMILIES[family][1].from_pretrained(tmp_path))


def without_labels(fields):
    return {
        name: value for name, value in fields.items() if name not in ("num_labels", "id2label", "label2id")
    }


WAYS = [by_constructor, by_keywords, by_auto_class, by_assignment, by_assignment_to_model, by_file]
every_way = pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
WRONG = {
    "one_class": (
        {"num_labels": 1, "problem_type": "single_label_classification"},
        "num_labels(=1| > 1|=1,)|5 outputs",
    ),
    "gap_in_numbers": ({"id2label": {"0": "cat", "2": "dog"}}, "id2label"),
    "disagreement": (
        {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 1, "dog": 0}},
        "label2id",
    ),
    "no_number": ({"id2label": {"first": "cat"}}, "'first'"),
    "misspelt": ({"patch_selectr": "variance"}, "did you mean 'patch_selector'"),
    "synonym": ({"num_classes": 3}, "did you mean 'num_labels'"),
}


@every_way
@every_family
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_fields_are_refused_before_the_first_forward(family, way, wrong, saved, tmp_path):
    fields, message = WRONG[wrong]
    if way is by_assignment_to_model and wrong == "one_class":
        fields = {"num_labels": 1, "problem_type": "single_label_classification"}
    with pytest.raises(ValueError, match=message):
        model = way(family, fields, saved, tmp_path)
        model(torch.rand(2, *FAMILIES[family][3]), labels=torch.zeros(2, dtype=torch.long))


@every_way
@every_family
def test_string_keys_are_numbers(family, way, saved, tmp_path):
    names = ["a", "b", "c", "d", "e"]
    config = way(family, {"id2label": dict(zip("01234", names, strict=True))}, saved, tmp_path).config
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: number for number, name in enumerate(names)}


@every_way
@pytest.mark.parametrize("family", ["vit", "video"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_selector": "variance", "num_selected_patches": 0}, "num_selected_patches=0"),
        ({"patch_selector": "spiral", "num_selected_patches": 4}, "spiral"),
        ({"keep_rate": 0.5}, "token_reducer"),
        ({"num_attention_heads": 5}, "num_attention_heads=5"),
        ({"drop_path_rate": 1.5}, "drop_path_rate"),
    ],
)
def test_other_fields_hold_as_well(family, way, fields, message, saved, tmp_path):
    with pytest.raises(Exception, match=message):  # huggingface_hub wraps the ValueError of a constructor
        way(family, fields, saved, tmp_path)(torch.rand(1, *FAMILIES[family][3]))


def test_number_of_labels_and_names_must_agree():
    with pytest.raises(ValueError, match=r"num_labels=3, but the labels are 2"):
        AdaptiveViTConfig(num_labels=3, id2label={0: "a", 1: "b"})
    with pytest.raises(ValueError, match="num_labels=-1"):
        AdaptiveViTConfig(num_labels=-1)


def test_names_are_not_lost_where_only_numbers_are_given():
    config = AdaptiveViTConfig(label2id={"cat": 0, "dog": 1, "cow": 2})
    assert config.id2label == {0: "cat", 1: "dog", 2: "cow"}


def test_as_many_labels_as_before_keep_their_names(tmp_path):
    tiny_config(num_labels=None, id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, num_labels=2).label2id == {"cat": 0, "dog": 1}
    assert AutoConfig.from_pretrained(tmp_path, num_labels=3).num_labels == 3


def test_single_output_learns_by_other_losses():
    for problem in ("multi_label_classification", "regression"):
        config = tiny_config(num_labels=1, problem_type=problem)
        model = AdaptiveViTForImageClassification(config)
        loss = model(torch.rand(2, 3, 32, 32), labels=torch.ones(2, 1)).loss
        loss.backward()
        assert model.classifier.weight.grad.abs().sum() > 0


def test_regression_of_several_outputs_needs_as_many_numbers():
    model = AdaptiveViTForImageClassification(tiny_config(problem_type="regression"))
    assert model(torch.rand(2, 3, 32, 32), labels=torch.rand(2, 5)).loss > 0
    with pytest.raises(ValueError, match="regression"):
        model(torch.rand(2, 3, 32, 32), labels=torch.rand(2))


def test_labels_changed_after_building_are_refused_by_segmentation():
    model = AdaptiveViTForSemanticSegmentation(tiny_config())
    model.config.num_labels = 7
    with pytest.raises(ValueError, match=r"num_labels=7.* 5 outputs"):
        model(torch.rand(1, 3, 32, 32), labels=torch.zeros(1, 32, 32, dtype=torch.long))


def test_checked_again_only_after_a_change(monkeypatch):
    model, calls = AdaptiveViTModel(tiny_config()), []
    monkeypatch.setattr(AdaptiveViTConfig, "validate_architecture", lambda config: calls.append(1))
    for _ in range(3):
        model(torch.rand(1, 3, 32, 32))
    assert not calls  # building the model has checked it
    model.config.keep_rate = 1.0
    model(torch.rand(1, 3, 32, 32))
    assert not calls
    model.config.initializer_range = 0.5
    for _ in range(2):
        model(torch.rand(1, 3, 32, 32))
    assert len(calls) == 1


@pytest.fixture
def own_encoding():
    """An encoding of a user's own that reads fields of its own, one of them similar to one of ours."""

    @register_position_encoding("mine")
    class Mine(PositionEncoding):
        def __init__(self, config):
            super().__init__(config)
            self.values = config.keep_rates, getattr(config, "rings_power", 1.0)

    yield Mine
    del POSITION_ENCODINGS["mine"]


@pytest.mark.parametrize("way", [by_constructor, by_keywords, by_assignment, by_file])
def test_fields_of_own_classes_are_allowed(way, own_encoding, saved, tmp_path):
    fields = {"position_encoding": "mine", "keep_rates": 3.0, "rings_power": 2.0}
    model = way("vit", fields, saved, tmp_path)
    assert model.vit.embeddings.position_encoding.values == (3.0, 2.0)
    with pytest.raises(ValueError, match="did you mean 'keep_rate'"):
        way("vit", {"keep_rates": 3.0}, saved, tmp_path)


@every_processor
def test_misspelt_options_of_image_processors_are_refused(processor_class, tmp_path):
    message = r"did you mean 'patch_selector'"
    processor = processor_class()
    with pytest.raises(ValueError, match=message):
        processor_class(patch_selectr="variance")
    with pytest.raises(ValueError, match=message):
        processor(torch.rand(3, 32, 32), do_rescale=False, patch_selectr="variance")
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        processor_class.from_pretrained(tmp_path, patch_selectr="variance")
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "patch_selectr": "variance"}))
    with pytest.raises(ValueError, match=message):
        processor_class.from_pretrained(tmp_path)
    processor.patch_selectr = "variance"
    with pytest.raises(ValueError, match=message):
        processor(torch.rand(3, 32, 32), do_rescale=False)


class TestOtherGrid:
    """`from_pretrained(image_size=...)`: as the checkpoint is at that size, or an error that says what to
    do."""

    @pytest.mark.parametrize("head", [{}, {"num_labels": 2, "ignore_mismatched_sizes": True}])
    @pytest.mark.parametrize("image_size", [48, 16, [48, 24]])
    @pytest.mark.parametrize(
        "encoding",
        ["learned", "learned_from_sinusoidal", "learned_rotary", "relative_bias", "sinusoidal_2d", "rotary"],
    )
    def test_equals_the_checkpoint_at_that_size(self, encoding, image_size, head, tmp_path):
        check_size(tmp_path, {"position_encoding": encoding}, (image_size,), head)

    @pytest.mark.parametrize(
        "fields",
        [
            {"position_encoding": "learned", "use_cls_token": False, "pooling": "mean"},
            {"position_encoding": {"type": "learned", "antialias": True}},
            {"position_encoding": "learned", "image_size": [32, 48]},
            {"position_encoding": {"type": "relative_bias", "shared": False}, "image_size": [48, 24]},
            {"position_encoding": {"type": "rotary", "coordinates": "native"}},
            {"position_encoding": {"type": "rotary_mixed", "coordinates": "native"}},
        ],
    )
    def test_whatever_the_table_is_like(self, fields, tmp_path):
        check_size(tmp_path, fields, (40,), {})

    @pytest.mark.parametrize("encoding", ["learned", "relative_bias"])
    def test_videos(self, encoding, tmp_path):
        fields = {"position_encoding": encoding, "num_frames": 4}
        check_size(tmp_path, fields, (48,), {}, shape=(4, 3, 48, 48))

    def test_by_a_configuration(self, tmp_path):
        model = encoder_with_random_tables(tiny_config())
        model.save_pretrained(tmp_path)
        config = tiny_config(image_size=48)
        compare(model, AdaptiveViTModel.from_pretrained(tmp_path, config=config), (3, 48, 48))
        assert config.image_size == 48

    def test_by_the_file(self, tmp_path):
        model = encoder_with_random_tables(tiny_config())
        model.save_pretrained(tmp_path)
        file = tmp_path / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "image_size": 48}))
        compare(model, AdaptiveViTModel.from_pretrained(tmp_path), (3, 48, 48))

    def test_stock_checkpoint(self, tmp_path):
        fields = {
            name: value
            for name, value in TINY.items()
            if name in ViTConfig().to_dict() or name == "num_labels"
        }
        stock = ViTForImageClassification(ViTConfig(**fields)).eval()
        torch.nn.init.normal_(stock.vit.embeddings.position_embeddings)
        stock.save_pretrained(tmp_path)
        images = torch.rand(1, 3, 48, 48)
        model = AdaptiveViTForImageClassification.from_pretrained(tmp_path, image_size=48)
        with torch.no_grad():
            expected = stock(images, interpolate_pos_encoding=True).logits
            torch.testing.assert_close(model(images).logits, expected, atol=1e-4, rtol=1e-4)

    def test_swin_positions(self, tmp_path):
        model = AdaptiveSwinForImageClassification(tiny_swin_config(use_absolute_embeddings=True)).eval()
        model.save_pretrained(tmp_path)
        again = AdaptiveSwinForImageClassification.from_pretrained(tmp_path, image_size=48)
        compare(model, again, (3, 48, 48), "logits")

    def test_swin_windows(self, tmp_path):
        fields = {"position_encoding": "relative_bias_continuous", "window_fit": "fixed"}
        AdaptiveSwinForImageClassification(tiny_swin_config(**fields)).save_pretrained(
            tmp_path / "continuous"
        )
        again = AdaptiveSwinForImageClassification.from_pretrained(tmp_path / "continuous", window_size=6)
        assert again.config.pretrained_window_sizes == [[4, 4]] * 3
        model = AdaptiveSwinForImageClassification(tiny_swin_config())
        model.save_pretrained(tmp_path / "table")
        again = AdaptiveSwinForImageClassification.from_pretrained(
            tmp_path / "table", window_size=6, ignore_mismatched_sizes=True
        )
        tables = [
            one.swin.encoder.layers[0].blocks[0].attention.relative_position_bias.relative_position_bias_table
            for one in (model, again)
        ]
        wanted = torch.nn.functional.interpolate(
            tables[0].T.unflatten(1, (7, 7))[None], (11, 11), mode="bicubic"
        )
        torch.testing.assert_close(tables[1], wanted[0].flatten(1).T)

    @pytest.mark.parametrize("encoding", ["fourier", "relative_bias_continuous"])
    def test_measures_that_would_change_are_refused(self, encoding, tmp_path):
        AdaptiveViTModel(tiny_config(position_encoding=encoding)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"image_size=32.*Leave image_size out"):
            AdaptiveViTModel.from_pretrained(tmp_path, image_size=48)

    @pytest.mark.parametrize("ignore", [False, True])
    def test_own_table_is_never_left_random(self, ignore, tmp_path):
        @register_position_encoding("own_table")
        class OwnTable(PositionEncoding):
            def __init__(self, config):
                super().__init__(config)
                cells = (config.image_size // config.patch_size) ** 2
                self.table = torch.nn.Parameter(torch.zeros(cells, config.hidden_size))

        try:
            save_without_code(AdaptiveViTModel(tiny_config(position_encoding="own_table")), tmp_path)
            with pytest.raises(ValueError, match=r"table.*without changing image_size"):
                AdaptiveViTModel.from_pretrained(tmp_path, image_size=48, ignore_mismatched_sizes=ignore)
        finally:
            del POSITION_ENCODINGS["own_table"]


def encoder_with_random_tables(config):
    model = AdaptiveViTModel(config).eval()
    for name, parameter in model.embeddings.position_encoding.named_parameters():
        if "position" in name:
            torch.nn.init.normal_(parameter)
    return model


def save_without_code(model, folder):
    """Saves a model whose class is in a test, so that its code cannot be saved; all else is."""
    with pytest.raises(NoSourceFileError, match="a file of its own"):
        model.save_pretrained(folder)


def compare(model, again, shape, output="last_hidden_state"):
    images = torch.rand(1, *shape)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(images)[output], model(images)[output], atol=1e-4, rtol=1e-4)


def check_size(folder, fields, sizes, head, shape=None):
    model = encoder_with_random_tables(tiny_config(**fields))
    model.save_pretrained(folder)
    for size in sizes:
        height, width = (size, size) if isinstance(size, int) else size
        loaded_class = AdaptiveViTForImageClassification if head else AdaptiveViTModel
        again = loaded_class.from_pretrained(folder, image_size=size, **head)
        compare(model, again.base_model, shape or (3, height, width))


class TestComputedTensors:
    """What a user's own class computes comes back from a checkpoint, or is warned of."""

    @pytest.mark.parametrize("seeded", [True, False])
    @pytest.mark.parametrize("nested", [True, False])
    def test_buffer_of_an_encoding(self, seeded, nested, tmp_path, caplog):
        @register_position_encoding("with_buffer")
        class WithBuffer(PositionEncoding):
            def __init__(self, config):
                super().__init__(config)
                generator = torch.Generator().manual_seed(3) if seeded else None
                owner = torch.nn.Module() if nested else self
                owner.register_buffer(
                    "table", torch.randn(16, config.hidden_size, generator=generator), persistent=False
                )
                if nested:
                    self.inner = owner
                self.scales = torch.arange(4.0)  # no buffer, and as empty

            def add(self, tokens):
                table = self.inner.table if nested else self.table
                return tokens.with_features(tokens.features + table * self.scales.sum())

        try:
            model = AdaptiveViTModel(tiny_config(position_encoding="with_buffer")).eval()
            save_without_code(model, tmp_path)
            with caplog.at_level(logging.WARNING):
                again = AdaptiveViTModel.from_pretrained(tmp_path)
            if seeded:
                compare(model, again, (3, 32, 32))
        finally:
            del POSITION_ENCODINGS["with_buffer"]
        assert ("persistent=True" in caplog.text) is not seeded

    def test_buffer_that_the_class_restores(self, tmp_path, caplog):
        @register_position_encoding("restored")
        class Restored(PositionEncoding):
            def __init__(self, config):
                super().__init__(config)
                self.register_buffer("table", torch.empty(3), persistent=False)

            def reset_parameters(self, std):
                torch.nn.init.constant_(self.table, 7.0)

        try:
            save_without_code(AdaptiveViTModel(tiny_config(position_encoding="restored")), tmp_path)
            again = AdaptiveViTModel.from_pretrained(tmp_path)
        finally:
            del POSITION_ENCODINGS["restored"]
        assert (again.embeddings.position_encoding.table == 7).all()

    def test_buffer_of_a_subclass_of_the_model_is_warned_of(self, tmp_path, caplog):
        class Own(AdaptiveViTForImageClassification):
            def __init__(self, config):
                super().__init__(config)
                self.register_buffer("class_weights", torch.ones(5), persistent=False)

        save_without_code(Own(tiny_config()), tmp_path)
        with caplog.at_level(logging.WARNING):
            Own.from_pretrained(tmp_path)
        assert "class_weights" in caplog.text and "persistent=True" in caplog.text
