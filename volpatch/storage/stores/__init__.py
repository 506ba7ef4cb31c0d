"""Where objects are put, each in one step that a kill cannot cut in two."""
