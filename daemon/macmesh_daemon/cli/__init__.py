"""The command line: `daemonctl` and `macmeshd`."""
