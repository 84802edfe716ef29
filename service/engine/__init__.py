"""Running one batch. Knows no queue, no HTTP."""
