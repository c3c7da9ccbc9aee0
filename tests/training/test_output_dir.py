import json

import pytest

from vit_hf.training.output_dir import (
    CHECKPOINT_FILES,
    OPTIMIZER_NAMES,
    RUN_ARGUMENTS_NAME,
    check_output_dir,
    find_last_checkpoint,
    set_aside,
)


def write_checkpoint(folder, step, *more, without=None, optimizer=OPTIMIZER_NAMES[0]):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in (*CHECKPOINT_FILES, optimizer, *more):
        if name != without:
            (checkpoint / name).write_text(json.dumps({"global_step": step}))
    return checkpoint


def test_last_checkpoint_is_the_latest_complete_one(tmp_path):
    assert find_last_checkpoint(tmp_path) is None
    assert find_last_checkpoint(tmp_path / "nowhere") is None
    write_checkpoint(tmp_path, 9)
    complete = write_checkpoint(tmp_path, 10)
    for step, name in enumerate((*CHECKPOINT_FILES, OPTIMIZER_NAMES[0]), 11):
        write_checkpoint(tmp_path, step, without=name)
    (write_checkpoint(tmp_path, 20) / "trainer_state.json").write_text('{"global_st')
    (tmp_path / "checkpoint-best").mkdir()
    assert find_last_checkpoint(tmp_path) == complete


@pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
def test_whoever_wrote_the_optimizer(tmp_path, optimizer):
    checkpoint = write_checkpoint(tmp_path, 1, optimizer=optimizer)
    write_checkpoint(tmp_path, 2, without=optimizer, optimizer=optimizer)
    assert find_last_checkpoint(tmp_path) == checkpoint


def test_a_checkpoint_that_lacks_something_wanted_is_second_choice(tmp_path):
    first = write_checkpoint(tmp_path, 1, "wanted")
    second = write_checkpoint(tmp_path, 2)
    assert find_last_checkpoint(tmp_path) == second
    assert find_last_checkpoint(tmp_path, ["wanted"]) == first
    assert find_last_checkpoint(tmp_path, ["another"]) == second


def test_output_dir_must_be_ours(tmp_path):
    check_output_dir(tmp_path / "new")
    check_output_dir(tmp_path)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(
        FileExistsError, match="is not empty and holds no run of this script; name another folder"
    ):
        check_output_dir(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"thesis\.tex is a file"):
        check_output_dir(tmp_path / "thesis.tex")
    (tmp_path / RUN_ARGUMENTS_NAME).write_text("{}")
    check_output_dir(tmp_path)
    write_checkpoint(tmp_path / "other", 1)
    check_output_dir(tmp_path / "other")


def test_set_aside_destroys_nothing(tmp_path):
    run = tmp_path / "run"
    assert set_aside(run) is None
    for number in (1, 2):
        write_checkpoint(run, number)
        aside = set_aside(run)
        assert aside == tmp_path / f"run-previous-{number}"
        assert not run.exists()
        assert (aside / f"checkpoint-{number}" / "trainer_state.json").is_file()
