"""Layouts: the folders that servers want. Runs on the command line; see ../README.md."""
