"""Says what vLLM says while it starts."""

from fake_server import serve

serve("/health", "Resolved architecture: DeepseekV3ForCausalLM", "Starting to load model")
