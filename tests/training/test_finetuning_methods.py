"""Arguments of a run that say what its model computes on, and what of it learns how fast."""

import pytest
import torch
from transformers import TrainerCallback


def test_says_what_is_reduced(make_run):
    run = make_run(
        token_reducer="attentive", keep_rate=0.7, reduction_layers=[1, 0], num_selected_patches=0.5
    )
    expected = (
        "50.0% of the patches of an image by variance; attentive keeps 70.0% of the tokens in each "
        "of the blocks 0, 1"
    )
    assert expected in run.describe()
    run = make_run(
        "other",
        token_reducer={"type": "merge", "r": 1},
        reduction_layers=[1],
        patch_selector=None,
        num_selected_patches=None,
    )
    assert "all patches; merge removes 1 tokens in each of the blocks 1" in run.describe()


def test_gradients_are_clipped_unless_asked_not_to(make_run):
    norms = []

    class Record(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            gradients = [value.grad for value in model.parameters() if value.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())

    for name, options in (("clipped", {}), ("whole", {"max_grad_norm": 0})):
        run = make_run(name, num_train_epochs=1, eval_strategy="no", **options)
        run.trainer.add_callback(Record())
        run.execute()
    clipped, whole = norms[:5], norms[5:]
    assert clipped == pytest.approx([1] * 5, abs=1e-4)
    assert min(whole) > 1


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, False),
        ({"token_reducer": "merge", "keep_rate": 0.5, "reduction_layers": [1]}, False),
        ({"token_reducer": "gumbel", "keep_rate": 0.5, "reduction_layers": [1]}, True),
        ({"patch_selector": {"type": "distilled", "num_layers": 1}}, True),
        ({"freeze_backbone_ratio": 0.5}, True),
    ],
)
def test_several_processes_look_for_unused_parameters_where_there_may_be_some(make_run, fields, expected):
    assert make_run(**fields).trainer.args.ddp_find_unused_parameters is expected


def test_loader_selects_only_what_the_model_would(make_run):
    assert make_run(return_patches=True).trainer.processing_class.patch_selector == "variance"
    # What explores needs all patches to draw from.
    run = make_run("other", return_patches=True, patch_selector={"type": "variance", "exploration": 0.5})
    assert run.trainer.processing_class.patch_selector is None
    assert run.trainer.model.vit.selector.exploration == 0.5
    # So does what samples; coverage is the loader's as well.
    run = make_run("sampled", return_patches=True, patch_selector={"type": "variance", "sampling": 0.5})
    assert run.trainer.processing_class.patch_selector is None
    covering = {"type": "variance", "coverage": 0.5}
    run = make_run("covered", return_patches=True, patch_selector=covering)
    assert run.trainer.processing_class.patch_selector == covering
    assert run.execute()["eval_accuracy"] >= 0
    # So has a thumbnail.
    run = make_run("third", return_patches=True, config_overrides={"thumbnail_context": True})
    assert run.trainer.processing_class.patch_selector is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"backbone_lr_factor": 0.0}, "backbone_lr_factor is 0.0"),
        ({"freeze_backbone_ratio": 1.5}, "freeze_backbone_ratio is 1.5"),
        ({"freeze_backbone_ratio": 0.5, "freeze_head": True}, "leaves nothing to learn"),
        ({"token_reducer": "psychic", "keep_rate": 0.5}, "'psychic' is unknown. Choose one of"),
        ({"keep_rate": 0.5}, "keep_rate=0.5 needs a token_reducer"),
        ({"keep_rate_schedule": True, "keep_rate_initial": 2.0}, "initial is 2.0"),
        (
            {"token_reducer": "merge", "reduction_layers": [0]},
            "'merge' keeps every token: set keep_rate",
        ),
        (
            {"patch_selector": None, "num_selected_patches": None, "keep_rate_schedule": True},
            "keep_rate_schedule needs a patch_selector or a token_reducer",
        ),
    ],
)
def test_refuses_what_does_not_go_together(make_run, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_run(**arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, value", [("learning_rate", 1e-3), ("backbone_lr_factor", 0.5)])
def test_refuses_to_resume_at_other_rates(make_run, tmp_path, name, value):
    make_run(num_train_epochs=1).execute()
    with pytest.raises(
        ValueError, match=f"with other rates: {name} was .* and is {value}.*set overwrite_output_dir"
    ):
        make_run(num_train_epochs=2, **{name: value})
    assert make_run(num_train_epochs=2, overwrite_output_dir=True, **{name: value}).checkpoint is None
