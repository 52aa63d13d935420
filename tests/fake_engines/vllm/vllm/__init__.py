"""A stand-in for vLLM that starts at once, for tests of the demonstration's own behaviour."""

__version__ = "0.32.0"
