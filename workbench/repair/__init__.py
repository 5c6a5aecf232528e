"""Finding -> fix -> plan -> simulate -> apply -> undo."""
