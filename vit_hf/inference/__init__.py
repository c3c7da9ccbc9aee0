"""Predictions: of whole files, tile by tile, streamed, of collections; evaluation."""
