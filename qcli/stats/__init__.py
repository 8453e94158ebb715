"""Statistics that calibration collects: one file, one commutative monoid over arrays."""
