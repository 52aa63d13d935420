"""Float64 layers that share no code with ours: plain loops over tokens and experts."""

from __future__ import annotations

import torch

BLOCK = 128


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight[N, K]`` as e4m3 with an arbitrary float32 scale per 128x128 block."""
    n, k = weight.shape
    scale = torch.empty(-(-n // BLOCK), -(-k // BLOCK))
    stored = torch.empty(n, k, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scale[i, j] = weight[at].abs().max() / 448 + 1e-12
            stored[at] = (weight[at] / scale[i, j]).to(torch.float8_e4m3fn)
    return stored, scale


def dequantise(stored: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Float64 values of ``stored[N, K]``."""
    out = stored.double()
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            out[at] *= scale[i, j].double()
    return out


def round_groups(x: torch.Tensor) -> torch.Tensor:
    """``x[T, K]`` as it is after e4m3 rounding per token and 128 columns, in float64."""
    out = torch.empty(x.shape, dtype=torch.float64)
    for start in range(0, x.shape[1], BLOCK):
        group = x[:, start : start + BLOCK].float()
        scale = group.abs().amax(1, keepdim=True).clamp(min=1e-10) / 448
        stored = (group / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        out[:, start : start + BLOCK] = stored.double() * scale.double()
    return out


class MoeWeights:
    """Random FP8 experts with float64 twins. Gate and up are quantised apart from each other."""

    def __init__(self, experts: int, hidden: int, inner: int, seed: int = 0) -> None:
        chance = torch.Generator().manual_seed(seed)
        parts = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        stored: dict[str, list] = {name: [] for name in parts}
        self.exact: dict[str, list[torch.Tensor]] = {name: [] for name in parts}
        for _ in range(experts):
            for name, (n, k) in parts.items():
                weight = torch.randn(n, k, generator=chance) / k**0.5
                pair = quantise(weight)
                stored[name].append(pair)
                self.exact[name].append(dequantise(*pair))
        both = [
            tuple(torch.cat(two) for two in zip(g, u, strict=True))
            for g, u in zip(stored["gate"], stored["up"], strict=True)
        ]
        self.w13 = torch.stack([w for w, _ in both])
        self.w13_scale = torch.stack([s for _, s in both])
        self.w2 = torch.stack([w for w, _ in stored["down"]])
        self.w2_scale = torch.stack([s for _, s in stored["down"]])

    @property
    def stored(self) -> tuple[torch.Tensor | None, ...]:
        return self.w13, self.w13_scale, self.w2, self.w2_scale

    def expert(
        self, e: int, rows: torch.Tensor, fp8: bool = False, limit: float | None = None
    ) -> torch.Tensor:
        """``rows[R, H]`` through expert e; between the steps as 16-bit layers round."""
        x = round_groups(rows) if fp8 else rows.double()
        return self.through(e, x, rows.dtype, fp8, limit)

    def through(
        self,
        e: int,
        x: torch.Tensor,
        dtype: torch.dtype,
        fp8: bool = False,
        limit: float | None = None,
    ) -> torch.Tensor:
        """Float64 rows ``x[R, H]`` through expert e of a layer that rounds to ``dtype``."""
        gate = (x @ self.exact["gate"][e].T).to(dtype).double()
        up = (x @ self.exact["up"][e].T).to(dtype).double()
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        inner = (gate * torch.sigmoid(gate) * up).to(dtype)
        inner = round_groups(inner) if fp8 else inner.double()
        return (inner @ self.exact["down"][e].T).to(dtype).double()


class MoeWeights16(MoeWeights):
    """Random experts of a 16-bit dtype, which have no scales."""

    def __init__(
        self, experts: int, hidden: int, inner: int, dtype: torch.dtype, seed: int = 0
    ) -> None:
        chance = torch.Generator().manual_seed(seed)
        w13 = torch.randn(experts, 2 * inner, hidden, generator=chance) / hidden**0.5
        w2 = torch.randn(experts, hidden, inner, generator=chance) / inner**0.5
        self.w13, self.w2 = w13.to(dtype), w2.to(dtype)
        self.w13_scale = self.w2_scale = None
        self.exact = {
            "gate": list(self.w13[:, :inner].double()),
            "up": list(self.w13[:, inner:].double()),
            "down": list(self.w2.double()),
        }


def moe_rows(
    weights: MoeWeights,
    hidden: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    on_input: bool = False,
    fp8: bool = False,
    limit: float | None = None,
) -> torch.Tensor:
    """What each chosen expert gives in float64, ``[T, topk, H]``, one row at a time.

    Router weights are in it only where they go in ``on_input``.
    """
    out = torch.zeros(*topk_ids.shape, hidden.shape[1], dtype=torch.float64)
    for t, ids in enumerate(topk_ids.tolist()):
        for j, e in enumerate(ids):
            if expert_map is not None and e >= 0:
                e = int(expert_map[e])
            if e < 0:
                continue
            row = hidden[t : t + 1]
            if on_input:
                row = (row.float() * float(topk_weights[t, j])).to(hidden.dtype)
            out[t, j] = weights.expert(e, row, fp8, limit)[0]
    return out


def moe(
    weights: MoeWeights,
    hidden: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    on_input: bool = False,
    fp8: bool = False,
    limit: float | None = None,
) -> torch.Tensor:
    """The whole layer in float64."""
    rows = moe_rows(weights, hidden, topk_weights, topk_ids, expert_map, on_input, fp8, limit)
    if topk_weights is not None and not on_input:
        rows = rows * topk_weights.double().unsqueeze(-1)
    return rows.sum(1)
