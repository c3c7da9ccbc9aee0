"""What a search measured, in a file that survives it: a line of JSON for each thing that was found out."""

import json
from pathlib import Path
from typing import Any

from ..model.elastic_space import SubNetwork


class History:
    """Measurements of sub-networks by name, such as "accuracy" and "gflops"; each is written down at once.

    The first line says what was searched. A last line that was being written when the search was killed is dropped.

    Args:
        path: of the file, which may be there already.
        subject: what is searched, plain JSON.

    Raises:
        ValueError: if the file holds a search of something else.
    """

    def __init__(self, path: Path, subject: dict[str, Any]):
        self.path = path
        self.measured: dict[SubNetwork, dict[str, float]] = {}
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        complete = [line for line in lines if line.endswith("\n")]
        if not complete:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(subject) + "\n")
            return
        found = json.loads(complete[0])
        differing = sorted(name for name in {*found, *subject} if found.get(name) != subject.get(name))
        if differing:
            name = differing[0]
            raise ValueError(
                f"{path} holds a search with {name} {found.get(name)!r}, and this one has {subject.get(name)!r}: name "
                "another output_dir, or remove the file"
            )
        if len(complete) < len(lines):
            path.write_text("".join(complete))
        for line in complete[1:]:
            entry = json.loads(line)
            network = SubNetwork.from_dict(entry.pop("network"))
            self.measured.setdefault(network, {}).update(entry)

    def get(self, network: SubNetwork, name: str) -> float | None:
        """A measurement, or None if there is none yet."""
        return self.measured.get(network, {}).get(name)

    def add(self, network: SubNetwork, **values: float) -> None:
        """Writes measurements down."""
        self.measured.setdefault(network, {}).update(values)
        with self.path.open("a") as file:
            file.write(json.dumps({"network": network.to_dict(), **values}) + "\n")
