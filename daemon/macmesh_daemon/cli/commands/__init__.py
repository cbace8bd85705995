"""The commands of `daemonctl`, one module each with ``add_parser(subparsers)`` and ``run(args) -> int``.

`macmesh_daemon.cli.registry` lists them.
"""
