"""Sample readers: one file here reads one kind of sample (`samples/npz.py` reads .npz files)."""
