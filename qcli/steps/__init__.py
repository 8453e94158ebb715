"""Graph steps before and after quantization: each keeps what the model computes, or is undone."""
