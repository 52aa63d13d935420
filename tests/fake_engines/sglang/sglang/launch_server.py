"""Says what SGLang says while it starts."""

from fake_server import serve

serve("/ready", "Init parallel begin.", "Load weight begin. avail mem=1.00 GB")
