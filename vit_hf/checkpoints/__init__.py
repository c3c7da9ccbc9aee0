"""Conversion of other libraries' checkpoints to ours, and back."""
