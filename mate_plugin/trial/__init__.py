"""A device on trial: each function against the CPU kernels, implementations side by side, times."""

# Devices that torch knows only once a package is imported.
BROUGHT_BY = {"musa": "torch_musa"}
