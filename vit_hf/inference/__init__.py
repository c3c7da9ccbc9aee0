"""Prediction of whole files, tile by tile, streamed, and of collections; evaluation."""
