"""The terminal workbench: one selection in an image, shown in every pane."""
