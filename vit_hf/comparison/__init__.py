"""Every way of using a checkpoint on large images, measured side by side on the user's own data."""
