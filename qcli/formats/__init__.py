"""Number formats: one file, one set of levels with its scale, encode and decode."""
