"""What test_vllm_musa.py runs inside a process with vLLM and a simulated Moore Threads GPU."""

from __future__ import annotations

from vllm_device_cases import compiled, default, expert_map, experts, linear

from mate_plugin.kernels import library

library._loaded["musa"] = library.module("cpu")
m = library.missing
library.missing = lambda k: None if k == "musa" else m(k)
