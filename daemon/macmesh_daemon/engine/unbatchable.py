"""Architectures whose requests cannot be decoded as rows of one batch, though their caches could be joined."""

REASONS: dict[str, str] = {}
"""By the mlx-lm module that implements the architecture. Found by decoding batches of each."""
