"""Architectures that have no stages."""

REFUSED = {
    "nanbeige": "the layers run more than once in one step",
    "iquestloopcoder": "the layers run more than once in one step",
}
"""By the mlx-lm module that implements the architecture. A step would have to go round the stages several times."""
