"""The grouped GEMMs and the indexer's logits in TileLang, one source for CUDA and MUSA.

A prototype beside the compiled kernels: nothing chooses it yet (:mod:`mate_plugin.kernels.select`).
Upstream TileLang lowers it to Hopper's tensor cores, Moore Threads' fork to those of MP31.
"""
