import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageClassification, ViTForImageClassification

from tests.helpers.elastic import ELASTIC, batch, supernet
from tests.helpers.launching import launch
from tests.helpers.models import SELECTIONS, tiny_config, tiny_selector
from tests.helpers.remote_code import run_elsewhere
from tests.helpers.trainers import train
from vit_hf import (
    PATCH_SELECTORS,
    POSITION_ENCODINGS,
    TOKEN_REDUCERS,
    AdaptiveViTForElasticImageClassification,
    AdaptiveViTForImageClassification,
    SearchSpace,
    SubNetwork,
)
from vit_hf.checkpoints.plain import to_transformers


SELECTING = {"num_selected_patches": 0.75, "elastic_space": {"keep_rates": [0.25, 0.5, 0.75]}}
REDUCING = {
    "keep_rate": 0.9,
    "elastic_space": {"keep_rates": [0.5, 0.75, 0.9]},
    "reduction_layers": [0, 1],
}


def check_extraction(model, subnetwork: SubNetwork, folder=None) -> None:
    model.eval()
    model.set_subnetwork(subnetwork)
    network = model.extract()
    images = batch()["pixel_values"]
    torch.manual_seed(0)
    expected = model(images).logits
    torch.manual_seed(0)
    assert torch.equal(network(images).logits, expected)
    assert network.num_parameters() == model.num_parameters_of(subnetwork)
    if folder is not None:
        network.save_pretrained(folder)
        again = AutoModelForImageClassification.from_pretrained(folder)
        assert type(again) is AdaptiveViTForImageClassification
        assert torch.equal(again(images).logits, expected)


@settings(max_examples=30, deadline=None)
@given(
    encoding=st.sampled_from(sorted(POSITION_ENCODINGS)),
    selector=st.sampled_from([None, *sorted(PATCH_SELECTORS)]),
    reducer=st.sampled_from([None, *sorted(TOKEN_REDUCERS)]),
    norm=st.sampled_from(["layernorm", "rmsnorm"]),
    pooling=st.sampled_from(["cls", "mean"]),
    feed_forward=st.sampled_from(["mlp", "gated"]),
    also=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_an_extracted_network_is_the_same_to_the_bit(
    encoding, selector, reducer, norm, pooling, feed_forward, also, seed
):
    if encoding.startswith("relative_bias"):
        encoding = {"type": encoding, "shared": also}
    fields = {"position_encoding": encoding, "norm_type": norm, "pooling": pooling}
    fields |= {"feed_forward": {"type": feed_forward, "norm": also}}
    fields |= {"pre_layernorm": also, "attention": {"norm": also}}
    fields |= {"num_register_tokens": 2 * also, "layerscale_value": 0.5 if also else None}
    if reducer:
        fields |= {"token_reducer": reducer, **REDUCING}
    if selector:
        fields |= {"patch_selector": selector, **SELECTING, "thumbnail_context": also}
    if selector and reducer:
        fields["keep_rate"] = 0.75
    torch.manual_seed(seed)
    model = supernet(**fields)
    check_extraction(model, model.space.sample(random.Random(seed)))


@pytest.mark.parametrize("place", [0, -1])
def test_smallest_and_largest_save_and_load(tmp_path, place):
    model = supernet(patch_selector="variance", position_encoding="rotary_mixed", **SELECTING)
    subnetwork = model.space.uniform(place)
    assert subnetwork.depth == (2, 3)[place] and subnetwork.keep_rate == (0.25, 0.75)[place]
    check_extraction(model, subnetwork, tmp_path)


@pytest.mark.parametrize("name", SELECTIONS)
def test_gradients_reach_the_first_parts_alone(name):
    fields = {**SELECTIONS[name]}
    fields |= {"reduction_layers": [0, 1]} if "token_reducer" in fields else {}
    model = supernet(**fields, elastic_space={"depths": None}) if name == "merge_r" else supernet(**fields)
    model.train()
    model(**batch()).loss.backward()
    # The same step's draw again.
    drawn = model.space.sample(random.Random("0 0"))
    shapes = {key: parameter.shape for key, parameter in model.extract(drawn).named_parameters()}
    cut = 0
    for key, parameter in model.named_parameters():
        if key not in shapes:
            assert parameter.grad is None, key
        elif parameter.grad is not None:
            inside = tuple(slice(length) for length in shapes[key])
            outside = parameter.grad.clone()
            outside[inside] = 0
            assert not outside.any(), key
            cut += parameter.shape != shapes[key]
    assert cut
    assert model.vit.layers[0].mlp.fc1.weight.grad.any()


@pytest.mark.parametrize("name", SELECTIONS)
def test_every_parameter_learns_with_distillation(name):
    fields, space = dict(SELECTIONS[name]), {"distillation": True}
    if name == "merge_r":
        space["depths"] = None
    elif "token_reducer" in fields:
        fields["reduction_layers"] = [0, 1]
    model = supernet(elastic_space=space, **fields).train()
    model(**batch()).loss.backward()
    ordinary = AdaptiveViTForImageClassification(tiny_config(**fields)).train()
    ordinary(**batch()).loss.backward()
    learning = {key for key, parameter in ordinary.named_parameters() if parameter.grad is not None}
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} == learning


def test_distillation_is_the_mean_of_what_the_papers_sum():
    model = supernet(elastic_space={"distillation": True, "num_sampled": 1}).train()
    inputs = batch()
    loss = model(**inputs).loss
    largest, *others = [
        model.extract(network).train()
        for network in (
            model.space.uniform(-1),
            model.space.uniform(0),
            model.space.sample(random.Random("0 0")),
        )
    ]
    teacher = largest(**inputs)
    divergences = []
    for network in others:
        student = network(inputs["pixel_values"]).logits.log_softmax(-1)
        target = teacher.logits.softmax(-1)
        divergences.append((target * (target.log() - student)).sum(-1).mean())
    torch.testing.assert_close(loss, (teacher.loss + sum(divergences)) / 3)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("multi_label_classification", torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 1, 0, 0]])),
        ("regression", torch.randn(2, 5)),
        (None, torch.tensor([0, 1])),
    ],
)
def test_other_problems_distil_too(problem, labels):
    model = supernet(elastic_space={"distillation": True}, problem_type=problem).train()
    outputs = model(batch()["pixel_values"], labels=labels)
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert model.config.problem_type == (problem or "single_label_classification")


@pytest.mark.parametrize("distils", [False, True])
def test_trainer_trains_saves_and_resumes(tmp_path, distils):
    def model():
        torch.manual_seed(0)
        return supernet(
            elastic_space={"distillation": distils},
            initializer_range=0.02,
            drop_path_rate=0.1,
            pooling="mean",
        )

    arguments = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    trainer = train(tmp_path, model(), max_steps=6, **arguments)
    trained = trainer.model
    assert int(trained.elastic_steps) == 6
    resumed = train(tmp_path, model(), max_steps=6, resume=str(tmp_path / "checkpoint-3"), **arguments)
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[key], value, msg=key)
    loaded = AdaptiveViTForElasticImageClassification.from_pretrained(tmp_path / "checkpoint-6")
    assert int(loaded.elastic_steps) == 6
    check_extraction(loaded, loaded.space.sample(random.Random(3)))


@pytest.mark.slow
def test_trainer_learns_all_of_them(tmp_path):
    torch.manual_seed(0)
    model = supernet(elastic_space={"distillation": True}, initializer_range=0.05, pooling="mean")
    trainer = train(tmp_path, model, max_steps=80, learning_rate=3e-3, per_device_train_batch_size=16)
    for subnetwork in (model.space.uniform(0), model.space.uniform(-1)):
        model.set_subnetwork(subnetwork)
        assert trainer.evaluate()["eval_loss"] < 0.8  # ln 5 = 1.6 for guessing


def test_evaluation_draws_nothing():
    model = supernet().eval()
    images = batch()["pixel_values"]
    largest = model.extract(model.space.uniform(-1))
    assert torch.equal(model(images).logits, largest(images).logits)
    assert int(model.elastic_steps) == 0
    model.set_subnetwork(model.space.uniform(0))
    assert not torch.equal(model(images).logits, largest(images).logits)
    model.set_subnetwork(None)
    assert torch.equal(model(images).logits, largest(images).logits)


def test_what_is_set_later_holds_for_sub_networks():
    model = supernet(
        patch_selector="variance", num_selected_patches=0.5, hidden_dropout_prob=0.5, drop_path_rate=0.5
    )
    model.set_subnetwork(model.space.uniform(0))
    images = batch()["pixel_values"]
    model.eval()
    assert torch.equal(model(images).logits, model(images).logits)
    model.set_attn_implementation("eager")
    assert len(model(images, output_attentions=True).attentions) == 2
    model.train()
    assert not torch.equal(model(images).logits, model(images).logits)
    model.set_dense_fraction(1.0)
    assert model(images).selected_patches.shape[1] == 20


def test_a_supernet_is_the_largest_as_an_ordinary_model(tmp_path, recwarn):
    model = supernet().eval()
    model.save_pretrained(tmp_path)
    ordinary, report = AdaptiveViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    images = batch()["pixel_values"]
    assert torch.equal(ordinary(images).logits, model(images).logits)
    assert isinstance(to_transformers(ordinary), ViTForImageClassification)
    again, report = AdaptiveViTForElasticImageClassification.from_pretrained(
        ordinary.name_or_path, output_loading_info=True
    )
    assert again.space == model.space and not report["missing_keys"]


def test_an_ordinary_checkpoint_becomes_a_supernet(tmp_path):
    AdaptiveViTForImageClassification(tiny_config()).save_pretrained(tmp_path)
    model, report = AdaptiveViTForElasticImageClassification.from_pretrained(
        tmp_path, elastic_space=ELASTIC, output_loading_info=True
    )
    assert not report["missing_keys"] and int(model.elastic_steps) == 0
    check_extraction(model, model.space.uniform(0))


@pytest.mark.slow
def test_loads_as_remote_code(tmp_path):
    model = supernet().eval()
    model.save_pretrained(tmp_path / "supernet")
    images = batch()["pixel_values"]
    torch.save({"images": images, "logits": model(images).logits.detach()}, tmp_path / "expected.pt")
    run_elsewhere(
        """
        import torch
        from transformers import AutoModelForImageClassification
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        expected = torch.load("expected.pt")
        model = AutoModelForImageClassification.from_pretrained("supernet", trust_remote_code=True)
        assert torch.equal(model(expected["images"]).logits, expected["logits"])
        name = "modeling_adaptive_vit.AdaptiveViTForElasticImageClassification"
        model = get_class_from_dynamic_module(name, "supernet").from_pretrained("supernet").eval()
        model.extract(model.space.uniform(0))
        """,
        tmp_path,
    )


@pytest.mark.slow
def test_ddp_runs_the_same_sub_networks_in_every_process(tmp_path):
    launch("train_elastic", tmp_path)


@pytest.mark.parametrize(
    ("space", "fields", "words"),
    [
        ({"hidden_sizes": [16, 24]}, {}, ["hidden_sizes=[16, 24]", "32", "hidden_size"]),
        ({"hidden_sizes": []}, {}, ["hidden_sizes=[]", "None"]),
        ({"depths": [3, 3]}, {}, ["depths=[3, 3]", "different"]),
        ({"depths": [0, 3]}, {}, ["depths=[0, 3]", "above 0"]),
        ({"mlp_ratios": [1, 4]}, {}, ["mlp_ratios=[1, 4]", "2.0"]),
        ({"keep_rates": [0.5, 1.0]}, {}, ["keep_rates=[0.5, 1.0]", "patch_selector"]),
        (
            {"keep_rates": [0.5]},
            {"patch_selector": "variance", "num_selected_patches": 6},
            ["as a fraction"],
        ),
        ({"depths": [2, 3]}, {"norm_type": "batchnorm"}, ["batchnorm", "layernorm"]),
        (
            {"depths": [2, 3]},
            {"layer_sizes": {"intermediate_size": [8, 8, 64]}},
            ["layer_sizes", "[8, 8, 64]"],
        ),
        (ELASTIC, {"pooling": "map"}, ["pooling='map'", "one matrix"]),
        (ELASTIC, {"pooling": "cls+mean"}, ["pooling='cls+mean'", "beside each other"]),
        (ELASTIC, {"token_reducer": "gumbel", "reduction_layers": [1]}, ["gumbel", "halves"]),
        (
            ELASTIC,
            {"token_reducer": "merge", "keep_rate": 0.8, "reduction_layers": [0, 2]},
            ["reduction_layers=[0, 2]", "depths=[2, 3]"],
        ),
        (
            {"depths": [1, 3]},
            {"patch_selector": tiny_selector("attention"), "num_selected_patches": 4},
            ["sub-network", "num_layers=2", "num_hidden_layers=1"],
        ),
        (
            {"hidden_sizes": [18, 32]},
            {"position_encoding": "sinusoidal_2d"},
            ["sub-network", "sinusoidal_2d", "18"],
        ),
        ({"distillation": True}, {}, ["elastic_space", "distillation", "depths"]),
        ({"num_sampled": -1}, {}, ["elastic_space", "num_sampled=-1"]),
        ({"depth": [1]}, {}, ["elastic_space", "no option 'depth'", "Did you mean 'depths'?"]),
    ],
)
def test_spaces_that_cannot_be_are_refused(space, fields, words):
    with pytest.raises(Exception) as error:
        tiny_config(**fields, elastic_space=space)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 20}, ["hidden_size=20", "[16, 24, 32]"]),
        ({"num_attention_heads": (1,), "mlp_ratios": (2,)}, ["depth=1", "[2, 3]"]),
        ({"num_attention_heads": (1, 3)}, ["num_attention_heads=[1, 3]", "[1, 2, 4]"]),
        ({"mlp_ratios": (2, 2, 2)}, ["mlp_ratios=[2, 2, 2]", "one for each block"]),
        ({"keep_rate": 0.5}, ["keep_rate=0.5", "[None]"]),
    ],
)
def test_sub_networks_of_another_space_are_refused(changes, words):
    model = supernet()
    subnetwork = SubNetwork.from_dict({**model.space.uniform(0).to_dict(), **changes})
    for ask in (model.set_subnetwork, model.extract, model.num_parameters_of):
        with pytest.raises(ValueError) as error:
            ask(subnetwork)
        for word in words:
            assert word in str(error.value)


def test_sub_networks_are_plain_json():
    space = SearchSpace.of(tiny_config(elastic_space=ELASTIC))
    subnetwork = space.sample(random.Random(0))
    assert SubNetwork.from_dict(subnetwork.to_dict()) == subnetwork
    assert {type(value) for value in subnetwork.to_dict().values()} <= {int, list, type(None)}


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match=r"elastic_space.*depths"):
        AdaptiveViTForElasticImageClassification(tiny_config())
    with pytest.raises(ValueError, match="does not support"):
        supernet().activation_checkpointing_enable()
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        supernet(elastic_space={"distillation": True}).train()(batch()["pixel_values"])
