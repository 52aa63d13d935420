"""Plain torch versions of the kernels, for tests and the self-test of ``mate-plugin doctor``."""
