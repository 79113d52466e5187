"""What the benchmark of quantization runs in environments of others."""
