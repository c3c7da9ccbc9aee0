"""`accelerate launch` and `torchrun`, and the configuration files for the former."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForImageClassification
from vit_hf.model.layers import AdaptiveViTLayer


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "vit_hf" / "configs"
FINETUNE = str(ROOT / "scripts" / "finetune.py")

# Accelerate shards on accelerators alone, and on a CPU silently does not; this lets it.
SHARDING_ON_CPU = """
import os, runpy, sys
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
from accelerate import PartialState
from accelerate.utils import DistributedType
PartialState._prepare_backend = lambda *arguments: ("gloo", DistributedType.MULTI_GPU)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "name, kind, machines, processes",
    [
        ("ddp", DistributedType.MULTI_GPU, 1, 4),
        ("fsdp2", DistributedType.FSDP, 1, 4),
        ("multi_node", DistributedType.MULTI_GPU, 2, 8),
    ],
)
def test_accelerate_accepts_the_files(name, kind, machines, processes, monkeypatch):
    path = str(CONFIGS / f"accelerate_{name}.yaml")
    config = load_config_from_file(path)
    assert config.distributed_type == kind
    flags = ["--config_file", path, FINETUNE]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(flags))
    assert (arguments.num_machines, arguments.num_processes) == (machines, processes)
    if name != "fsdp2":
        return
    for variable, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(variable, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    model = AdaptiveViTForImageClassification(tiny_config())
    plugin.set_auto_wrap_policy(model)  # fails if the model has no such class
    assert plugin.auto_wrap_policy.keywords["transformer_layer_cls"] == {AdaptiveViTLayer}


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    entries = {
        "dataset": "megapixel_digits",
        "dataset_options": {"task": "single", "size": 48, "num_noise": 0, "num_train": 64, "num_test": 16},
        "validation_fraction": 0.25,
        "config_overrides": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "patch_size": 16,
            "num_channels": 1,
        },
        "patch_selector": "policy",
        "num_selected_patches": 4,
        "image_size": 48,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": False,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    path = tmp_path_factory.mktemp("launchers") / "run.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


def launch(*command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen) -> str:
    """What the first of them printed, if all went well."""
    try:
        outputs = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.terminate()  # so that it ends what it launched, if it was too slow
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    assert "Saved to" in outputs[0]
    return outputs[0]


def losses_of(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def by_torchrun(run_file):
    """The losses of two processes under `torchrun`."""
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", FINETUNE, str(run_file)]
    output_dir = run_file.parent / "torchrun"
    finish(launch(*command, "--use_cpu", "--output_dir", str(output_dir)))
    assert (output_dir / "checkpoint-4" / "rng_state_1.pth").is_file()  # there were two
    return losses_of(output_dir)


def by_accelerate(name: str, *flags: str) -> subprocess.Popen:
    config_file = str(CONFIGS / f"accelerate_{name}.yaml")
    return launch("accelerate.commands.launch", "--config_file", config_file, "--num_processes", "2", *flags)


@pytest.mark.slow
@pytest.mark.xdist_group("launchers")
def test_accelerate_and_torchrun_train_alike(by_torchrun, run_file, tmp_path):
    flags = ["--main_process_port", "0", FINETUNE, str(run_file), "--use_cpu"]
    finish(by_accelerate("ddp", *flags, "--output_dir", str(tmp_path)))
    assert len(by_torchrun) == 4
    assert losses_of(tmp_path) == by_torchrun


@pytest.mark.slow
@pytest.mark.xdist_group("launchers")
def test_so_do_two_machines(by_torchrun, run_file, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    rest = [FINETUNE, str(run_file), "--use_cpu", "--output_dir", str(tmp_path)]
    machines = [by_accelerate("multi_node", *flags, "--machine_rank", rank, *rest) for rank in "01"]
    finish(*machines)
    assert losses_of(tmp_path) == by_torchrun


@pytest.mark.slow
@pytest.mark.xdist_group("launchers")
@pytest.mark.timeout(900)
def test_so_does_a_model_in_pieces_which_resumes(by_torchrun, run_file, tmp_path):
    wrapper = tmp_path / "sharding_on_cpu.py"
    wrapper.write_text(SHARDING_ON_CPU)
    output_dir = tmp_path / "run"
    flags = ["--main_process_port", "0", str(wrapper), FINETUNE, str(run_file)]
    flags += ["--output_dir", str(output_dir), "--lr_scheduler_type", "constant"]
    finish(by_accelerate("fsdp2", *flags, "--max_steps", "2"))
    assert (output_dir / "checkpoint-2" / "pytorch_model_fsdp.bin").is_file()  # it was in pieces
    assert losses_of(output_dir) == pytest.approx(by_torchrun[:2], rel=1e-4)
    output = finish(by_accelerate("fsdp2", *flags))
    assert f"resumes from {output_dir / 'checkpoint-2'}" in output
    assert losses_of(output_dir)[:3] == pytest.approx(by_torchrun[:3], rel=1e-3)
    AdaptiveViTForImageClassification.from_pretrained(output_dir)
