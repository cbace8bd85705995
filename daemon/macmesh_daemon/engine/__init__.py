"""The inference engine: what runs under mlx."""
