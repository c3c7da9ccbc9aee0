"""Teach a Vision Transformer, on images without labels, to keep its answer with few of its patches.

    python scripts/distill.py --dataset photos/ --model_name_or_path facebook/dinov2-small --image_size 518 \\
        --patch_selector '{"type": "attention", "coverage": 0.5}' --num_selected_patches 0.1 \\
        --output_dir runs/sparse
    python scripts/distill.py scripts/configs/distill_photos.yaml --dataset photos/

The checkpoint itself, frozen and with all patches, is the teacher; the model that is saved is the checkpoint,
head included, trained to have the same states from a few patches, whose number each step draws anew. Fidelity
at 5, 10, 25 and 50 % of the patches is measured on held-out images, before training and after each epoch. The
first argument may be a YAML or JSON file of flags; flags after it override it. A run that was interrupted
resumes when it is started again with the same arguments.
"""

from vit_hf.training.distillation import SparseDistillation
from vit_hf.training.task import main_of


def main(argv: list[str] | None = None) -> None:
    main_of(SparseDistillation, "distill.py", __doc__, argv)


if __name__ == "__main__":
    main()
