"""How a worker's GPU stream and its transport's CPU streams wait for each other.

* `mode`: the decision between ``safe``, ``fast`` and ``auto``.
* `self_test`: measures a hop in both settings, by processes of `self_test_main`, which alone imports mlx.
* `quarantine`: remembers where ``fast`` has hung.
"""
