"""Panes of the workbench; they draw what `engine` and `render` know, and decide nothing."""
