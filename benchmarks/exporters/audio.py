"""Torch modules for sound: a transcriber, a streaming recogniser, an encoder of waveforms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from cases import Block, Case, Input, settled
from torch import Tensor, nn


class Whisper(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv1d(20, width, 3, 1, 1), nn.Conv1d(width, width, 3, 2, 1)
        self.register_buffer("waves", torch.randn(64, width))
        self.encoder = nn.ModuleList(Block(width, 4) for _ in range(2))
        self.words, self.positions = nn.Embedding(97, width), nn.Embedding(48, width)
        self.decoder = nn.ModuleList(Block(width, 4, cross=True) for _ in range(2))
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, features: Tensor, decoder_input_ids: Tensor) -> tuple[Tensor, Tensor]:
        x = F.gelu(self.c2(F.gelu(self.c1(features)))).transpose(1, 2)
        x = x + self.waves[: x.shape[1]]
        for block in self.encoder:
            x = block(x)
        memory = self.n1(x)
        steps = decoder_input_ids.shape[1]
        y = self.words(decoder_input_ids) + self.positions(torch.arange(steps, device=x.device))
        mask = torch.full((steps, steps), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        for block in self.decoder:
            y = block(y, mask=mask, memory=memory)
        return self.n2(y) @ self.words.weight.t(), memory


def whisper(wide: float) -> Case:
    inputs = [Input("features", ["B", 20, "F"]), Input("decoder_input_ids", ["B", "T"], "ids:97")]
    sizes = [{"B": 2, "F": 40, "T": 6}, {"B": 1, "F": 17, "T": 1}, {"B": 3, "F": 61, "T": 11}]
    return Case(Whisper(int(32 * wide)).eval(), inputs, ["logits", "memory"], sizes)


class Speech(nn.Module):
    """Convolutions over frames, a bidirectional GRU, an LSTM whose states come in and go out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv1d(16, width, 5, 1, 2), nn.BatchNorm1d(width), nn.ReLU(), nn.Conv1d(width, width, 3, 2, 1), nn.ReLU()
        )
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.lstm = nn.LSTM(2 * width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, 29)

    def forward(self, frames: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.front(frames.transpose(1, 2)).transpose(1, 2)
        x, _ = self.gru(x)
        x, (hn, cn) = self.lstm(x, (h, c))
        return F.log_softmax(self.head(x), -1), hn, cn


def speech(wide: float) -> Case:
    w = int(16 * wide)
    inputs = [Input("frames", ["B", "T", 16]), Input("h", [2, "B", w]), Input("c", [2, "B", w])]
    sizes = [{"B": 2, "T": 20}, {"B": 1, "T": 1}, {"B": 3, "T": 37}]
    return Case(settled(Speech(w)), inputs, ["scores", "hn", "cn"], sizes, half=False)


class Wav2vec(nn.Module):
    """Raw samples, strided convolutions with group norm, a convolution for positions, a post-norm encoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c0, self.g0 = nn.Conv1d(1, width, 10, 5, bias=False), nn.GroupNorm(width, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, 2, bias=False) for _ in range(3))
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, width)
        self.where = nn.utils.parametrizations.weight_norm(nn.Conv1d(width, width, 16, padding=8, groups=4), dim=2)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, dropout=0.0, activation="gelu")
            for _ in range(2)
        )
        self.head = nn.Linear(width, 32)

    def forward(self, samples: Tensor) -> Tensor:
        x = samples[:, None]
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-7)
        x = F.gelu(self.g0(self.c0(x)))
        for conv in self.convs:
            x = F.gelu(conv(x))
        x = self.project(self.norm(x.transpose(1, 2)))
        x = x + F.gelu(self.where(x.transpose(1, 2))[:, :, :-1]).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(x).float().log_softmax(-1)


def wav2vec(wide: float) -> Case:
    sizes = [{"B": 2, "T": 800}, {"B": 1, "T": 401}, {"B": 3, "T": 1777}]
    return Case(Wav2vec(int(32 * wide)).eval(), [Input("samples", ["B", "T"])], ["logits"], sizes)
