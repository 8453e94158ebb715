"""Roundings: one file, one way to choose a level for every weight."""
