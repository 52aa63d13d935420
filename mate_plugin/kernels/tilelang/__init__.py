"""FP8 grouped GEMMs in TileLang, one source for CUDA and MUSA, where the package is installed.

Upstream TileLang lowers ``grouped_program`` to Hopper's tensor cores, Moore Threads' fork to the
matrix units of MP31. ``grouped`` says which calls are of a form that the program has, ``cache``
what TileLang compiles for, and ``route`` compiles and calls. It never ran on a MUSA device.
"""
