"""`vit-hf distill`, for those who work in a clone; `accelerate launch` and `torchrun` start it, too."""

import sys


sys.argv[:1] = ["vit-hf", "distill"]  # before the import: arguments are read before torch is loaded

from vit_hf.cli import main  # noqa: E402


if __name__ == "__main__":
    sys.exit(main())
