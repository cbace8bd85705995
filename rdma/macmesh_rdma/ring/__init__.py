"""MLX's own ``ring`` backend between processes of one machine, as a baseline.

* `lane`: a tensor lane over it. Imports mlx.
* `reserved_port`: a port that a rank binds later.
"""
