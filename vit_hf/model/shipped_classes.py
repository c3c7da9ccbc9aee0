"""A user's classes that travel with this checkpoint, by their names in the configuration; see `registry.py`.

Empty in the package. In a saved checkpoint `save_pretrained` writes this file, with an import of each of their files.
"""

CLASSES: dict[str, type] = {}
