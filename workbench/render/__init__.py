"""Pure views shared by the command line and the workbench."""
