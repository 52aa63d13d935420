"""The demonstration: a small random checkpoint, a server, one chat, a table of kernels."""
