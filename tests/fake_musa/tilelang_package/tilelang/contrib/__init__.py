"""As the fork has it."""
