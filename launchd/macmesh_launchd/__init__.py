"""The macOS service: launchd property lists, install, uninstall, status."""
