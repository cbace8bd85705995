"""Transport between workers: lanes and groups that carry arrays."""
