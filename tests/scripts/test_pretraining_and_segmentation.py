"""Scripts that pretrain and segment on a few tiny canvases."""

import pytest

from tests.helpers.scripts import command


@pytest.mark.parametrize("name", ["pretrain", "segment"])
def test_what_is_wrong_ends_with_a_message(name, tmp_path):
    with pytest.raises(SystemExit, match=rf"vit-hf {name}: there is no file or folder .*nowhere"):
        command(name)(["--dataset", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
