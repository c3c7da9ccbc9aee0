"""What runs a checkpoint; saved with it as one file."""
