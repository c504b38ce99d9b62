"""Torch modules with inputs to export them by, and what several of them are built of."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Input:
    """An input: its name, its extents (numbers, symbols, or sums such as `P+T`), and its contents.

    Args:
        kind: `normal` (floats), `ids:N` (integers below N), `mask` (integers, 1 where something is), `ones`,
            `positions` (P, P+1, … in each row), `bool`.
    """

    name: str
    dims: list[int | str]
    kind: str = "normal"


@dataclass
class Case:
    """A module, its inputs and outputs, the sizes at which to try it (the first one is traced), and free outputs."""

    module: nn.Module
    inputs: list[Input]
    outputs: list[str]
    sizes: list[dict[str, int]]
    free: dict[str, dict[int, str]] = field(default_factory=dict)
    half: bool = True


def settled(module: nn.Module) -> nn.Module:
    """Give batch norms running statistics that are not 0 and 1."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, 0, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.weight, 0.7, 1.3)
    return module.eval()


class Block(nn.Module):
    """A pre-norm transformer block with scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        if cross:
            self.n3, self.q = nn.LayerNorm(width), nn.Linear(width, width)
            self.kv, self.o = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, causal: bool = False, memory: Tensor | None = None
    ) -> Tensor:
        q, k, v = (self.split(t) for t in self.qkv(self.n1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        if memory is not None:
            k, v = (self.split(t) for t in self.kv(memory).chunk(2, -1))
            y = F.scaled_dot_product_attention(self.split(self.q(self.n3(x))), k, v)
            x = x + self.o(y.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.n2(x))
