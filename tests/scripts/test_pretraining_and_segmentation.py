"""Scripts that pretrain, distill and segment: their configurations, and what they refuse."""

import pytest
import yaml

from tests.helpers.scripts import SCRIPTS, load_script
from vit_hf.data.arguments import DataArguments
from vit_hf.data.augmentation import AugmentationArguments
from vit_hf.training.arguments import ArchitectureArguments, ModelArguments, RunArguments
from vit_hf.training.command_line import make_parser, read_config
from vit_hf.training.distillation import DistillationArguments, DistillationRunArguments
from vit_hf.training.pretraining import PretrainingArguments
from vit_hf.training.segmentation import SegmentationArguments


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        (
            "pretrain_digits",
            [
                ArchitectureArguments,
                DataArguments,
                AugmentationArguments,
                PretrainingArguments,
                RunArguments,
            ],
        ),
        (
            "distill_photos",
            [
                ModelArguments,
                DataArguments,
                AugmentationArguments,
                DistillationArguments,
                DistillationRunArguments,
            ],
        ),
        ("segment_digits", [ModelArguments, DataArguments, SegmentationArguments, RunArguments]),
    ],
)
def test_configurations_are_flags(name, groups):
    path = SCRIPTS / "configs" / f"{name}.yaml"
    flags = read_config(make_parser(groups, ""), str(path))
    assert {flag[2:] for flag in flags if flag.startswith("--")} == yaml.safe_load(path.read_text()).keys()


@pytest.mark.parametrize(
    ("name", "flags"),
    [("pretrain", []), ("segment", []), ("distill", ["--model_name_or_path", "owner/model"])],
)
def test_what_is_wrong_ends_with_a_message(name, flags, tmp_path):
    flags = [*flags, "--dataset", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=rf"{name}.py: there is no file or folder .*nowhere"):
        load_script(name).main(flags)
    assert not (tmp_path / "run").exists()
