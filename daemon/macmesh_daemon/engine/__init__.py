"""What a worker computes with: the stage of a model, its caches, sampling and the head's schedule."""
