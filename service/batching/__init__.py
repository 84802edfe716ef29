"""Forming batches. Knows no model, no ONNX, no HTTP."""
