"""Pictures of what a model kept, and why it predicted what it did."""
