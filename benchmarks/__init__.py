"""Measurements of qcli beside onnxruntime's own quantizer. Not part of the package; see README.md."""
