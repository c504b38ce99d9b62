"""Ten torch modules as people write and export them, with random weights, small or over 100 MB.

`MODULES` maps a name to a builder. A builder takes a factor of the width and gives a `Case`: the module, what its
inputs are, and the sizes at which it is tried. Runs in an environment with torch; never a dependency of the project.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from audio import speech, wav2vec, whisper
from cases import Block, Case, Input, settled
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Sequential(
            nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True),
            nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout),
        )  # fmt: skip
        same = cin == cout and stride == 1
        self.b = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x) + self.b(x))


def resnet(wide: float) -> Case:
    c = int(8 * wide)
    net = nn.Sequential(
        nn.Conv2d(3, c, 7, 2, 3, bias=False), nn.BatchNorm2d(c), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        Residual(c, c, 1), Residual(c, 2 * c, 2), Residual(2 * c, 4 * c, 2), Residual(4 * c, 8 * c, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * c, 10),
    )  # fmt: skip
    sizes = [{"B": 2, "H": 64, "W": 64}, {"B": 1, "H": 65, "W": 47}, {"B": 3, "H": 33, "W": 96}]
    return Case(settled(net), [Input("image", ["B", 3, "H", "W"])], ["scores"], sizes)


class Inverted(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        mid = 4 * cin
        self.up = nn.Sequential(nn.Conv2d(cin, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.Hardswish())
        self.deep = nn.Sequential(
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), nn.BatchNorm2d(mid), nn.ReLU6()
        )
        self.gate = (
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(mid, 4, 1), nn.ReLU(), nn.Conv2d(4, mid, 1), nn.Hardsigmoid()
            )
            if squeeze
            else None
        )
        self.down = nn.Sequential(nn.Conv2d(mid, cout, 1, bias=False), nn.BatchNorm2d(cout))
        self.same = cin == cout and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(self.up(x))
        if self.gate is not None:
            y = y * self.gate(y)
        y = self.down(y)
        return x + y if self.same else y


def mobilenet(wide: float) -> Case:
    c = int(8 * wide)
    net = nn.Sequential(
        nn.Conv2d(3, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c), nn.Hardswish(),
        Inverted(c, c, 1, False), Inverted(c, 2 * c, 2, True), Inverted(2 * c, 2 * c, 1, True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(2 * c, 12), nn.Softmax(-1),
    )  # fmt: skip
    sizes = [{"B": 2, "H": 64, "W": 64}, {"B": 1, "H": 31, "W": 47}, {"B": 3, "H": 96, "W": 33}]
    return Case(settled(net), [Input("image", ["B", 3, "H", "W"])], ["probabilities"], sizes)


class UNet(nn.Module):
    """Steps down by strides, up by ConvTranspose and by interpolation to the extent of what is joined."""

    def __init__(self, c: int) -> None:
        super().__init__()

        def block(cin: int, cout: int, stride: int = 1) -> nn.Module:
            return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1), nn.GroupNorm(2, cout), nn.SiLU())

        self.d0, self.d1, self.d2 = block(3, c), block(c, 2 * c, 2), block(2 * c, 4 * c, 2)
        self.up = nn.ConvTranspose2d(4 * c, 2 * c, 2, 2)
        self.u1, self.u0 = block(4 * c, 2 * c), block(3 * c, c)
        self.head = nn.Conv2d(c, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.d0(x)
        b = self.d1(a)
        y = self.up(self.d2(b))
        y = self.u1(torch.cat([y[:, :, : b.shape[2], : b.shape[3]], b], 1))
        y = F.interpolate(y, size=a.shape[-2:], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.head(self.u0(torch.cat([y, a], 1))))


def unet(wide: float) -> Case:
    sizes = [{"B": 2, "H": 48, "W": 64}, {"B": 1, "H": 33, "W": 47}, {"B": 3, "H": 20, "W": 31}]
    return Case(UNet(int(8 * wide)).eval(), [Input("image", ["B", 3, "H", "W"])], ["masks"], sizes)


class ViT(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def vit(wide: float) -> Case:
    net = ViT(int(32 * wide), 2).eval()
    return Case(net, [Input("image", ["B", 3, 32, 32])], ["scores"], [{"B": 2}, {"B": 1}, {"B": 3}])


class Bert(nn.Module):
    """Post-norm encoder with attention spelled out and an additive mask, as transformers wrote it for years."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.heads = 4
        self.words, self.kinds = nn.Embedding(101, width), nn.Embedding(2, width)
        self.positions = nn.Embedding(64, width)
        self.register_buffer("ids", torch.arange(64)[None], persistent=False)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {n: nn.Linear(width, width) for n in "qkvo"}
                | {"up": nn.Linear(width, 4 * width), "down": nn.Linear(4 * width, width)}
                | {n: nn.LayerNorm(width) for n in ("n1", "n2")}
            )
            for _ in range(layers)
        )
        self.pool = nn.Linear(width, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        steps = input_ids.shape[1]
        x = self.words(input_ids) + self.kinds(token_type_ids) + self.positions(self.ids[:, :steps])
        x = self.norm(x)
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            q, k, v = (layer[n](x).view(x.shape[0], steps, self.heads, -1).permute(0, 2, 1, 3) for n in "qkv")
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask
            y = (scores.softmax(-1) @ v).permute(0, 2, 1, 3).contiguous().view(x.shape)
            x = layer["n1"](x + layer["o"](y))
            x = layer["n2"](x + layer["down"](F.gelu(layer["up"](x))))
        return x, torch.tanh(self.pool(x[:, 0]))


def bert(wide: float) -> Case:
    inputs = [Input("input_ids", ["B", "T"], "ids:101"), Input("attention_mask", ["B", "T"], "mask"),
              Input("token_type_ids", ["B", "T"], "ids:2")]  # fmt: skip
    sizes = [{"B": 2, "T": 16}, {"B": 1, "T": 1}, {"B": 3, "T": 33}]
    return Case(Bert(int(32 * wide), 2).eval(), inputs, ["states", "pooled"], sizes)


class Pair(nn.Module):
    """An image tower and a text tower, compared."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image = ViT(width, 2)
        self.image.head = nn.Linear(width, 24)
        self.words, self.positions = nn.Embedding(99, width), nn.Parameter(torch.randn(77, width))
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(2))
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, 24, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.6))

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = F.normalize(self.image(pixel_values), dim=-1)
        x = self.words(input_ids) + self.positions[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x, causal=True)
        x = self.norm(x)
        b = self.project(x[torch.arange(x.shape[0], device=x.device), input_ids.argmax(-1)])
        b = b / b.norm(dim=-1, keepdim=True)
        return self.scale.exp() * a @ b.t(), a, b


def clip(wide: float) -> Case:
    inputs = [Input("pixel_values", ["B", 3, 32, 32]), Input("input_ids", ["C", "T"], "ids:99")]
    sizes = [{"B": 2, "C": 3, "T": 9}, {"B": 1, "C": 1, "T": 1}, {"B": 3, "C": 2, "T": 77}]
    return Case(Pair(int(32 * wide)).eval(), inputs, ["logits", "image_embeds", "text_embeds"], sizes)


class Detr(nn.Module):
    """Convolutions, an encoder, queries, and a head that keeps the best boxes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.back = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.SiLU(),
            nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.SiLU(), nn.MaxPool2d(5, 1, 2),
        )  # fmt: skip
        self.encoder = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, dropout=0.0)
        self.queries = nn.Parameter(torch.randn(1, 20, width))
        self.decoder = Block(width, 4, cross=True)
        self.kind, self.box = nn.Linear(width, 7), nn.Linear(width, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.back(image).flatten(2).transpose(1, 2)
        x = self.encoder(x)
        q = self.decoder(self.queries.repeat(x.shape[0], 1, 1), memory=x)
        scores, labels = self.kind(q).sigmoid().max(-1)
        cx, cy, w, h = self.box(q).sigmoid().unbind(-1)
        boxes = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)
        scale = torch.tensor([image.shape[3], image.shape[2], image.shape[3], image.shape[2]], dtype=x.dtype)
        best, at = scores.topk(5, dim=1)
        boxes = boxes.gather(1, at[..., None].expand(-1, -1, 4)) * scale
        return best, labels.gather(1, at), boxes


def detr(wide: float) -> Case:
    sizes = [{"B": 2, "H": 32, "W": 48}, {"B": 1, "H": 33, "W": 31}, {"B": 3, "H": 24, "W": 40}]
    net = settled(Detr(int(32 * wide)))
    return Case(net, [Input("image", ["B", 3, "H", "W"])], ["scores", "labels", "boxes"], sizes)


class Yolo(nn.Module):
    """Focus slices, CSP blocks, spatial pyramid, nearest upsampling, grids and strides in the head."""

    def __init__(self, c: int) -> None:
        super().__init__()

        def conv(cin: int, cout: int, k: int = 3, s: int = 1) -> nn.Module:
            return nn.Sequential(nn.Conv2d(cin, cout, k, s, k // 2, bias=False), nn.BatchNorm2d(cout), nn.SiLU())

        self.stem, self.d1, self.d2 = conv(12, c), conv(c, 2 * c, 3, 2), conv(2 * c, 2 * c, 3, 2)
        self.a, self.b, self.m, self.join = conv(2 * c, c, 1), conv(2 * c, c, 1), conv(c, c), conv(2 * c, 2 * c, 1)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9))
        self.pyramid = conv(6 * c, 2 * c, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.mix = conv(4 * c, 2 * c)
        self.heads = nn.ModuleList([nn.Conv2d(2 * c, 3 * 9, 1), nn.Conv2d(2 * c, 3 * 9, 1)])
        self.register_buffer("anchors", torch.rand(2, 3, 2) * 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        x = self.d1(self.stem(x))
        y = self.d2(x)
        y = self.join(torch.cat([self.m(self.a(y)) + self.a(y), self.b(y)], 1))
        y = self.pyramid(torch.cat([y, *(p(y) for p in self.pools)], 1))
        z = self.mix(torch.cat([self.up(y), x], 1))
        found = []
        for head, part, stride, anchors in zip(self.heads, (z, y), (4, 8), self.anchors, strict=True):
            p = head(part)
            n, _, h, w = p.shape
            p = p.view(n, 3, 9, h, w).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
            gy, gx = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            grid = torch.stack([gx, gy], -1).view(1, 1, h, w, 2).to(p.dtype)
            xy = (p[..., :2] * 2 - 0.5 + grid) * stride
            wh = (p[..., 2:4] * 2) ** 2 * anchors.view(1, 3, 1, 1, 2)
            found.append(torch.cat([xy, wh, p[..., 4:]], -1).view(n, -1, 9))
        return torch.cat(found, 1)


def yolo(wide: float) -> Case:
    sizes = [{"B": 2, "H": 64, "W": 96}, {"B": 1, "H": 32, "W": 32}, {"B": 3, "H": 40, "W": 56}]
    sizes = [{"B": s["B"], "h": s["H"] // 8, "w": s["W"] // 8} for s in sizes]
    inputs = [Input("images", ["B", 3, "8*h", "8*w"])]
    return Case(settled(Yolo(int(8 * wide))), inputs, ["predictions"], sizes)


MODULES: dict[str, Callable[[float], Case]] = {
    "resnet": resnet, "mobilenet": mobilenet, "unet": unet, "vit": vit, "bert": bert, "clip": clip,
    "whisper": whisper, "speech": speech, "detr": detr, "yolo": yolo, "wav2vec": wav2vec,
}  # fmt: skip
