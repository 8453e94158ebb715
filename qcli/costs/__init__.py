"""What single kernels cost on a machine: measured once, kept, and used to rank plans."""
