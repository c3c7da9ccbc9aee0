"""Detection runs: what is built and loaded, training, average precision, going on, and what is refused."""

import builtins
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.ops import box_convert
from transformers import AutoImageProcessor, AutoModelForObjectDetection, ResNetConfig, pipeline

from tests.helpers.models import tiny_swin_config
from tests.helpers.runs import voc
from vit_hf import (
    AdaptiveSwinModel,
    AdaptiveViTBackbone,
    AdaptiveViTConfig,
    AdaptiveViTForImageClassification,
)
from vit_hf.arguments import DataArguments, DetectionArguments, ModelArguments
from vit_hf.explanations.detections import backbone_of
from vit_hf.training.arguments import RunArguments
from vit_hf.training.detection import AveragePrecision, BoxCollator, Detection, stack_labels
from vit_hf.training.detectors import DETECTORS
from vit_hf.training.task import prepare


pytest.importorskip("pycocotools", reason="pip install vit_hf[detection]")
pytest.importorskip("torchmetrics", reason="pip install vit_hf[detection]")

GROUPS = (ModelArguments, DataArguments, DetectionArguments, RunArguments)
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 8,
    "initializer_range": 0.05,
}
HEAD = {
    "d_model": 32,
    "num_queries": 6,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "dropout": 0.0,
}
# Those of Deformable DETR alone.
DEFORMABLE = {"num_feature_levels": 1, "with_box_refine": True, "auxiliary_loss": True}


@pytest.fixture(scope="session")
def boxed_folder(tmp_path_factory):
    """Ten photos of 64x64 pixels with a bright square or a dark one, and their Pascal VOC files."""
    folder = tmp_path_factory.mktemp("boxed")
    generator = np.random.default_rng(0)
    for index in range(10):
        left, top = generator.integers(0, 36, 2)
        name = ("bright", "dark")[index % 2]
        voc(folder, str(index), [(name, left, top, left + 24, top + 20)], size=(64, 64))
        pixels = generator.integers(100, 140, (64, 64, 3), dtype=np.uint8)
        pixels[top : top + 20, left : left + 24] = 250 if name == "bright" else 10
        PIL.Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def make_detection(boxed_folder, tmp_path):
    """A function of `output_dir` and arguments (flat, as on the command line) to a prepared run."""

    def make(output_dir="detector", **arguments):
        scratch = {} if "model_name_or_path" in arguments else {"config_overrides": VIT}
        if arguments.get("model_name_or_path") is None or "detector_overrides" in arguments:
            scratch.setdefault("detector_overrides", HEAD | DEFORMABLE)
        values = {
            "dataset": str(boxed_folder),
            "native_resolution": True,
            "validation_fraction": 0.3,
            "output_dir": str(tmp_path / output_dir),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 2e-3,
            "logging_steps": 1,
            "disable_tqdm": True,
            "use_cpu": True,
            "num_pictured": 0,
            **scratch,
            **arguments,
        }
        groups = []
        for group in GROUPS:
            names = group.__dataclass_fields__.keys() & values.keys()
            groups.append(group(**{name: values.pop(name) for name in names}))
        assert not values
        *arguments, training = groups
        return prepare(Detection(*arguments), training)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_every_detector_learns(make_detection, tmp_path, detector):
    run = make_detection(
        detector=detector,
        detector_overrides=HEAD | (DEFORMABLE if detector == "deformable_detr" else {"auxiliary_loss": True}),
        single_class=True,
        patch_selector="saliency",
        num_selected_patches=0.5,
        num_train_epochs=60,
        learning_rate=1e-3,
        eval_strategy="no",
        save_strategy="no",
        num_pictured=2,
    )
    metrics = run.execute()
    losses = [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert metrics["eval_loss"] < losses[0]
    assert PIL.Image.open(tmp_path / "detector" / "detections.png").size[0] > 500


def test_trains_goes_on_and_is_measured_again(make_detection, tmp_path):
    """Interrupted after an epoch: the weights of a run that was not; then the saved detector on fewer
    patches."""
    run = make_detection(
        crop_size=48, horizontal_flip=0.5, patch_selector="variance", num_selected_patches=0.5
    )
    text = run.describe()
    assert "7 train with 7 boxes in 28 pieces, 3 validation with 3 boxes in 12 pieces; 2 classes" in text
    assert "deformable_detr" in text and "50.0% of the patches of an image by variance" in text
    metrics = run.execute()
    assert {"eval_map", "eval_map_50", "eval_mar_100", "eval_map_bright", "train_loss"} <= metrics.keys()
    expected = run.trainer.model.state_dict()

    folder = tmp_path / "detector"
    (folder / "model.safetensors").unlink()
    for file in (folder / "checkpoint-14").iterdir():
        file.unlink()
    again = make_detection(
        crop_size=48, horizontal_flip=0.5, patch_selector="variance", num_selected_patches=0.5
    )
    assert str(again.checkpoint).endswith("checkpoint-7")
    again.execute()
    for name, values in again.trainer.model.state_dict().items():
        torch.testing.assert_close(values, expected[name], msg=name)

    measured = make_detection(
        "measured",
        model_name_or_path=str(folder),
        crop_size=48,
        num_selected_patches=9,
        evaluate_only=True,
        num_pictured=3,
    )
    before = {name: values.clone() for name, values in measured.trainer.model.state_dict().items()}
    assert backbone_of(measured.trainer.model).config.num_selected_patches == 9
    assert "evaluates" in measured.describe()
    scores = measured.execute()
    assert scores.keys() >= {"eval_map", "eval_loss"} and not any(name.startswith("train") for name in scores)
    assert all(
        torch.equal(before[name], values) for name, values in measured.trainer.model.state_dict().items()
    )
    assert {path.name for path in (tmp_path / "measured").iterdir()} >= {
        "eval_results.json",
        "detections.png",
    }
    voc(tmp_path / "late" / "test", "a", [("dark", 1, 2, 30, 40)], size=(64, 64))
    late = make_detection(
        "late-run", model_name_or_path=str(folder), dataset=str(tmp_path / "late"), evaluate_only=True
    )
    assert late.execute().keys() >= {"test_map", "test_loss"}  # of a known class, though others are not there
    assert late.trainer.model.config.id2label == {0: "bright", 1: "dark"}
    with pytest.raises(ValueError, match="d_model cannot be changed"):
        make_detection("other", model_name_or_path=str(folder), detector_overrides={"d_model": 64})


def test_saved_detectors_load_and_detect_in_a_pipeline(make_detection, tmp_path, boxed_folder):
    make_detection(num_train_epochs=1, patch_selector="saliency", num_selected_patches=0.5).execute()
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "detector").eval()
    assert type(backbone_of(model)) is AdaptiveViTBackbone
    assert model.config.id2label == {0: "bright", 1: "dark"}
    processor = AutoImageProcessor.from_pretrained(tmp_path / "detector")
    image = PIL.Image.open(boxed_folder / "3.png")
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    (expected,) = processor.post_process_object_detection(outputs, threshold=0.01, target_sizes=[(64, 64)])
    found = pipeline("object-detection", model=str(tmp_path / "detector"))(image, threshold=0.01)
    assert len(found) == len(expected["scores"]) > 0
    for answer, score, box in zip(found, expected["scores"], expected["boxes"], strict=True):
        assert answer["score"] == pytest.approx(score.item(), abs=1e-5) and answer["label"] in (
            "bright",
            "dark",
        )
        assert [answer["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] == box.int().tolist()


def test_a_classifier_becomes_the_backbone(make_detection, tmp_path):
    config = AdaptiveViTConfig(**VIT, image_size=64)
    AdaptiveViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    vit = AdaptiveViTForImageClassification.from_pretrained(tmp_path / "vit").vit
    run = make_detection(model_name_or_path=str(tmp_path / "vit"), detector_overrides=HEAD | DEFORMABLE)
    backbone = backbone_of(run.trainer.model)
    for name, values in vit.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], values), name


def test_the_backbone_learns_at_its_own_rate(make_detection):
    run = make_detection(backbone_lr_factor=0.1, layer_decay=0.5, weight_decay=0.1)
    optimizer = run.trainer.create_optimizer()
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    model = run.trainer.model
    assert len(rates) == len(list(model.parameters()))  # each once
    named = dict(model.named_parameters())
    assert rates[id(named["model.level_embed"])] == pytest.approx(2e-3)
    first = "model.backbone.model.layers.0.mlp.fc1.weight"
    assert rates[id(named[first])] == pytest.approx(2e-3 * 0.1 * 0.5**2)


def labels_of(*boxes):
    return [
        {
            "class_labels": torch.tensor([number for number, *_ in found], dtype=torch.int64),
            "boxes": torch.tensor([box for _, *box in found]).reshape(-1, 4),
            "orig_size": torch.tensor([100, 200]),
        }
        for found in boxes
    ]


def test_average_precision_is_summed_up_over_batches():
    """Two of three boxes found, one of them half beside: by hand, AP50 of the classes is 1 and 0.5."""
    metric = AveragePrecision(DETECTORS["detr"].image_processor(), ["a", "b", "c"])
    true = labels_of([(0, 0.5, 0.5, 0.2, 0.2)], [], [(1, 0.3, 0.3, 0.2, 0.2), (1, 0.7, 0.7, 0.2, 0.2)])
    answers = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.1, 0.1], [0.3, 0.35, 0.2, 0.2]])
    logits = torch.full((3, 1, 4), -20.0)
    logits[0, 0, 0] = logits[1, 0, 3] = logits[2, 0, 1] = 20.0

    def batch(*indices):
        rows = list(indices)
        return SimpleNamespace(
            predictions=(logits[rows].numpy(), answers[rows, None].numpy()),
            label_ids=tuple(values.numpy() for values in stack_labels([true[row] for row in rows])),
        )

    assert metric(batch(0, 1), compute_result=False) == {}
    result = metric(batch(2))
    # Half of the second class, up to an overlap of 0.6: of 101 points of recall, 51.
    assert result["map_50"] == pytest.approx((1 + 51 / 101) / 2)
    assert result["map_a"] == pytest.approx(1) and "map_c" not in result
    assert result["map_b"] == pytest.approx(3 / 10 * 51 / 101)
    assert metric(batch(0))["map_50"] == pytest.approx(1)  # the next evaluation begins anew


@pytest.mark.parametrize("detector", DETECTORS)
def test_batches_are_what_detectors_take(detector):
    """Boxes and classes of mixed sizes arrive in the model's frame, and padding is told apart."""
    collator = BoxCollator(DETECTORS[detector].image_processor(do_resize=False))
    boxes = np.array([[8.0, 16, 24, 32], [0, 0, 4, 4]])
    examples = [
        {"image": PIL.Image.new("L", (64, 48)), "boxes": boxes, "classes": np.array([1, 0]), "image_id": 0},
        {
            "image": PIL.Image.new("RGBA", (32, 32)),
            "boxes": boxes[:0],
            "classes": np.array([], int),
            "image_id": 1,
        },
    ]
    batch = collator(examples)
    assert batch["pixel_values"].shape == (2, 3, 48, 64)
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [48 * 64, 32 * 32]
    first, second = batch["labels"]
    corners = box_convert(first["boxes"], "cxcywh", "xyxy") * torch.tensor([64, 48, 64, 48])
    torch.testing.assert_close(corners, torch.from_numpy(boxes).float())
    assert first["class_labels"].tolist() == [1, 0] and second["boxes"].shape == (0, 4)


@pytest.mark.parametrize("selector", ["variance", "gradient", "entropy", "saliency"])
def test_padding_is_what_heuristics_leave_out(selector):
    """A detector's image processor pads with zeros; whole patches of it are chosen when nothing else is
    left."""
    config = AdaptiveViTConfig(**VIT, image_size=64, patch_selector=selector, num_selected_patches=16)
    backbone = AdaptiveViTBackbone(config).eval()
    images = torch.zeros(1, 3, 64, 96)
    images[..., :32, :48] = torch.randn(1, 3, 32, 48)
    (kept,) = backbone(images).selected_patches
    rows, columns = kept // 12, kept % 12
    assert ((rows < 5) & (columns < 7)).all()  # the border of the image may look like an edge


class TestRefuses:
    def test_mixed_sizes_where_patches_are_selected(self, make_detection, tmp_path):
        for index, size in enumerate([(64, 64), (48, 64), (64, 64), (64, 64)]):
            voc(tmp_path / "mixed", str(index), [("tree", 1, 2, 30, 40)], size=size)
        fields = {
            "dataset": str(tmp_path / "mixed"),
            "patch_selector": "variance",
            "num_selected_patches": 0.5,
        }
        with pytest.raises(
            ValueError, match=r"several sizes.*crop_size, image_size, or per_device_train_batch_size 1"
        ):
            make_detection(**fields)
        for remedy in (
            {"crop_size": 48},
            {"image_size": 64, "native_resolution": False},
            {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1},
        ):
            make_detection(**(fields | remedy))

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is for classification"),
            ({"skip_corrupt": True}, "skip_corrupt is for classification"),
            ({"push_to_hub": True}, "loads after import vit_hf"),
            ({"evaluate_only": True}, "name it with model_name_or_path"),
            ({"evaluate_whole_images": True}, "for crop_size"),
            ({"detector_overrides": {"d_modle": 3}}, "DeformableDetrConfig has no field d_modle"),
            ({"detector_overrides": {"decoder_layers": 1}}, "decoder_layers=1 must be at least 2"),
            ({"config_overrides": {"hidden": 3}}, "AdaptiveViTConfig has no field hidden"),
            ({"return_patches": True}, "return_patches is not for detectors"),
            ({"native_resolution": False, "longest_edge": 40}, "longest_edge is not for detectors"),
            ({"patch_selector": "policy", "num_selected_patches": 4}, "learns under a classifier"),
            ({"token_reducer": "merge", "reduction_layers": [1]}, "keeps every token"),
            ({"keep_rate_schedule": True}, "needs a patch_selector or a token_reducer"),
            ({"validation_fraction": 0.0}, "no validation split"),
            ({"patch_selector": "nose"}, "nose"),
        ],
    )
    def test_before_anything_is_written(self, make_detection, tmp_path, arguments, match):
        with pytest.raises(ValueError, match=match):
            make_detection(**arguments)
        assert not (tmp_path / "detector").exists()

    def test_detectors_over_something_else(self, make_detection, tmp_path):
        config = DETECTORS["detr"].config(
            **HEAD, backbone_config=ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        )
        DETECTORS["detr"].model(config).save_pretrained(tmp_path / "theirs")
        with pytest.raises(ValueError, match="is a detr over resnet, which cannot select"):
            make_detection(model_name_or_path=str(tmp_path / "theirs"))

    def test_what_is_no_vit(self, make_detection, tmp_path):
        AdaptiveSwinModel(tiny_swin_config()).save_pretrained(tmp_path / "swin")
        with pytest.raises(ValueError, match="holds a 'adaptive_swin' model"):
            make_detection(model_name_or_path=str(tmp_path / "swin"), detector_overrides=HEAD | DEFORMABLE)

    def test_overrides_that_do_not_fit_the_checkpoint(self, make_detection, tmp_path):
        AdaptiveViTForImageClassification(AdaptiveViTConfig(**VIT)).save_pretrained(tmp_path / "vit")
        with pytest.raises(ValueError, match="has another shape than the model needs"):
            make_detection(
                model_name_or_path=str(tmp_path / "vit"),
                detector_overrides=HEAD | DEFORMABLE,
                config_overrides={"intermediate_size": 48},
            )

    def test_without_the_extra(self, monkeypatch):
        original = builtins.__import__

        def without(name, *args, **kwargs):
            if name == "pycocotools":
                raise ModuleNotFoundError("No module named 'pycocotools'")
            return original(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(ImportError, match=r"pip install vit_hf\[detection\]"):
            AveragePrecision(DETECTORS["detr"].image_processor(), ["a"])


def test_keep_rate_is_led_to_its_target(make_detection):
    run = make_detection(
        keep_rate_schedule=True,
        patch_selector="variance",
        num_selected_patches=0.25,
        eval_strategy="no",
        save_strategy="no",
        validation_fraction=0.0,
    )
    run.execute()
    logged = [entry["dense_fraction"] for entry in run.trainer.state.log_history if "loss" in entry]
    assert logged[0] > 0.9 and logged[-1] == 0
