"""Versions of the packages that this one needs, checked before they are used."""

import importlib.metadata
import shlex
import sys

from packaging.requirements import Requirement


PACKAGE = __package__


def check_versions() -> None:
    """Checks that the installed packages have the versions that this package declares.

    Raises:
        ImportError: naming each package that is missing or too old, its version, and the command that helps.
    """
    try:
        declared = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder, without being installed
        return
    wrong, needed = [], []
    for requirement in map(Requirement, declared):
        if requirement.marker is not None:  # of an extra
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found = "it is not" if version is None else f"{version} is"
            wrong.append(f"{requirement} is needed, and {found} installed")
            needed.append(str(requirement))
    if wrong:
        remedy = shlex.join([sys.executable, "-m", "pip", "install", "--upgrade", *needed])
        raise ImportError(f"{PACKAGE}: {'; '.join(wrong)}. Run: {remedy}")
