"""A device on trial: each function against the CPU kernels, implementations side by side, times."""
