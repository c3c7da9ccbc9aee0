"""Commands that pretrain, distill and segment: what they refuse."""

import pytest

from tests.helpers.scripts import command


@pytest.mark.parametrize(
    ("name", "flags"),
    [("pretrain", []), ("segment", []), ("distill", ["--model_name_or_path", "owner/model"])],
)
def test_what_is_wrong_ends_with_a_message(name, flags, tmp_path):
    flags = [*flags, "--dataset", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=rf"vit-hf {name}: there is no file or folder .*nowhere"):
        command(name)(flags)
    assert not (tmp_path / "run").exists()
