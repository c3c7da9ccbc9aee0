"""Versions of the packages that this one needs, checked before they are used."""

import importlib.metadata
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
    wrong = []
    for requirement in map(Requirement, declared):
        if requirement.marker is not None:  # of an extra
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement} is needed, and it is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement} is needed, and {version} is installed")
    if wrong:
        remedy = f"{sys.executable} -m pip install --upgrade {PACKAGE}"
        raise ImportError(f"{PACKAGE}: {'; '.join(wrong)}. Run: {remedy}")
