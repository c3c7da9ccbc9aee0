"""No cache of `datasets` in the home directory, and no progress bars."""

from tests.training.conftest import dataset_cache


__all__ = ["dataset_cache"]
