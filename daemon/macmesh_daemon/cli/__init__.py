"""The command line: `daemonctl`, and `macmeshd`'s entry point.

Nothing here is imported before it is needed: `daemonctl --help` loads argparse and one table.
"""
