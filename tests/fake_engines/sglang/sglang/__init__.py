"""A stand-in for SGLang that starts at once, for tests of the demonstration's own behaviour."""

__version__ = "0.5.23"
