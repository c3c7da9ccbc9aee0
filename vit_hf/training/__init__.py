"""Fine-tuning, segmentation, detection and pretraining with `Trainer`."""
