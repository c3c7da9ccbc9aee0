"""No cache of `datasets` in the home directory, and no progress bars."""

from tests.helpers.runs import dataset_cache


__all__ = ["dataset_cache"]
