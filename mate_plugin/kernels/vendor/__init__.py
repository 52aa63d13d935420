"""Moore Threads' own ``mate`` as a provider of kernels for ``musa`` tensors.

``package`` knows what is installed, ``grouped``, ``dense`` and ``indexer`` turn arguments of our
compiled ops into calls of the published functions, and ``route`` makes these calls.
"""
