"""The `qwb` command line: one file per command."""
