"""Fixtures of runs on small folders of images."""

from tests.helpers.runs import dataset_cache, image_folder, make_run


__all__ = ["dataset_cache", "image_folder", "make_run"]
