"""`python -m vit_hf`, which is `vit-hf`."""

import sys

from .cli import main


if __name__ == "__main__":
    sys.exit(main())
