"""Layers made of the kernels: engine-free ones, and one file per seam of an engine."""
