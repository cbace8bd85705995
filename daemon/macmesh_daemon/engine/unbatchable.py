"""Architectures whose requests cannot be decoded as rows of one batch, though their caches could be joined."""

REASONS = {
    "afm7": "its last layers take positions from the padded length, not from the row's own",
    "gemma2": "mlx-lm adds a batch's mask to scores of another shape",
    "gpt_bigcode": "mlx-lm makes one position of the lengths of all rows",
    "minimax_m3_vl": "its blocks of keys are cut over the padded rows, so that a row's choice depends on the others",
    "phi3small": "its block-sparse attention is written for one row",
}
"""By the mlx-lm module that implements the architecture. Found by decoding batches of each."""
