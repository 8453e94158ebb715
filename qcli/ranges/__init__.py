"""Range estimators: one file, one way from a distribution to the real interval that a grid spans."""
