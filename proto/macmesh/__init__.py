"""The macmesh client SDK."""
