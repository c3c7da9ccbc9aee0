"""Command-line scripts as modules, so that tests can call what is in them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


SCRIPTS = Path(__file__).parents[2] / "scripts"
EXPERIMENTS = SCRIPTS / "experiments"
# Fields of a model that a script trains in seconds.
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 8,
    "num_channels": 1,
}


def load_script(name: str, folder: Path = SCRIPTS) -> ModuleType:
    """Imports `name`.py of `folder`; as when Python runs it, it can import what lies in its folder."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(f"{name}_script", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_experiment(name: str) -> ModuleType:
    """Imports `name`.py of the experiments."""
    return load_script(name, EXPERIMENTS)
