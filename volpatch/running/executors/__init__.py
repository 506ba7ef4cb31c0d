"""Ways to have tasks done: they start workers, and tell of what becomes of each task."""
