"""What stock SGLang imports on a CPU of the package ``sgl_kernel``, which has no CPU build.

One function is called; the others, for AMX, raise.
"""

from __future__ import annotations

import torch

__version__ = "0.0"


def assign_req_to_token_pool_cpu(
    requests: torch.Tensor,
    req_to_token: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    slots: torch.Tensor,
    width: int,  # noqa: ARG001
) -> None:
    """Write the slots of each request's new tokens into its row, from its start to its end."""
    taken = 0
    for request, start, end in zip(requests.tolist(), starts.tolist(), ends.tolist(), strict=True):
        count = end - start
        req_to_token[request, start:end] = slots[taken : taken + count].to(req_to_token.dtype)
        taken += count


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name}: there is no CPU build")

    return missing
