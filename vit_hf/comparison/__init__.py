"""Comparison of all methods of using a checkpoint on large images, on the user's own data."""
