"""The Open Inference Protocol v2 over HTTP, with Triton's extensions: what its clients need and nothing of its own."""
