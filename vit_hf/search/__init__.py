"""Search for good sub-networks of an elastic ViT under a budget, and for good settings of an optimizer."""
