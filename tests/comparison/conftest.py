"""Fixtures of runs on small folders of images."""

from tests.helpers.runs import dataset_cache


__all__ = ["dataset_cache"]
