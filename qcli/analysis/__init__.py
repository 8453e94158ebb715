"""Where a quantized model loses accuracy, and which rules would help: what `qcli analyze` calls."""
