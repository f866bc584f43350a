"""The stream processors: the pure saga machine, and the loop that folds the log with it (ARCHITECTURE.md)."""
