"""Sharing a model: its card, and the repository on the Hub."""
