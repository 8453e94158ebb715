"""The four networks in torch, and how they are trained.

The names of modules and parameters are the names the ONNX graphs carry: `graphs.py` reads the state dict.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from data import SEED, Digits, Floats, Layout, shifted
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
BATCH = 64


def conv_norm(channels: int, features: int, kernel: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, features, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=convolution, norm=nn.BatchNorm2d(features)))


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow, and add the input again (as in MobileNetV2)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = conv_norm(channels, hidden, 1)
        self.depthwise = conv_norm(hidden, hidden, 3, groups=hidden)
        self.project = conv_norm(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu6(self.expand(x))
        hidden = functional.relu6(self.depthwise(hidden))
        y: Tensor = x + self.project(hidden)
        return y


class Branches(nn.Module):
    """A narrow and a wide view of the same input, side by side."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.narrow = conv_norm(channels, features, 1)
        self.wide = conv_norm(channels, features, 3)

    def forward(self, x: Tensor) -> Tensor:
        views = functional.relu(self.narrow(x)), functional.relu(self.wide(x))
        return torch.cat(views, dim=1)


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(1, 32, 3)
        self.residual = InvertedResidual(32, 128)
        self.branches = Branches(32, 64)
        self.mix = conv_norm(128, 192, 1)
        self.head = nn.Linear(192, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.stem(x)), 2)
        x = self.branches(self.residual(x))
        x = functional.relu(self.mix(functional.max_pool2d(x, 2)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, one packed matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(width // self.heads)
        mixed = (scores.softmax(dim=-1) @ values).transpose(1, 2).reshape(batch, tokens, width)
        projected: Tensor = self.projection(mixed)
        return projected

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.attention_norm(x))
        hidden = functional.gelu(self.up(self.feedforward_norm(x)))
        y: Tensor = x + self.down(hidden)
        return y

    @torch.no_grad()
    def grow_outliers(self, channels: Sequence[int], factor: float) -> None:
        """Scale channels up in each norm and down in the matrix behind it: the same function."""
        for norm, linear in ((self.attention_norm, self.qkv), (self.feedforward_norm, self.up)):
            for channel in channels:
                norm.weight[channel] *= factor
                norm.bias[channel] *= factor
                linear.weight[:, channel] /= factor


class Transformer(nn.Module):
    """Eight rows of a digit as eight tokens, behind a learned class token that the head reads."""

    width, heads, depth, tokens = 48, 4, 2, 8

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, self.width)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, self.width))
        self.position = nn.Parameter(0.02 * torch.randn(1, self.tokens + 1, self.width))
        self.layers = nn.ModuleList(EncoderLayer(self.width, self.heads) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, CLASSES)

    def grow_outliers(self, channels: Sequence[int] = (7, 29), factor: float = 16.0) -> None:
        """Give the trained network the few large channels that large language models grow by themselves."""
        for layer in self.layers:
            cast(EncoderLayer, layer).grow_outliers(channels, factor)

    def forward(self, x: Tensor) -> Tensor:
        first = self.class_token.expand(len(x), 1, self.width)
        x = torch.cat((first, self.embed(x)), dim=1) + self.position
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


class Gru(nn.Module):
    """Reads a digit from its first row to its last and classifies the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 96, batch_first=True)
        self.head = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.gru(x)
        logits: Tensor = self.head(last[0])
        return logits


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 128)
        self.second = nn.Linear(128, 64)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.second(functional.relu(self.first(x))))
        logits: Tensor = self.head(hidden)
        return logits


def train(kind: type[nn.Module], digits: Digits, layout: Layout, epochs: int) -> nn.Module:
    """The same bytes on the same machine: one thread, fixed seeds, a fixed number of steps."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    network = kind().train()
    steps = epochs * math.ceil(len(digits) / BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for inputs, labels in _batches(digits, layout, epochs):
        _step(network, optimizer, inputs, labels)
        schedule.step()
    if isinstance(network, Transformer):
        network.grow_outliers()
    return network.eval()


def _batches(digits: Digits, layout: Layout, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    random = np.random.default_rng(SEED)
    for _ in range(epochs):
        order = random.permutation(len(digits))
        for start in range(0, len(order), BATCH):
            batch = digits.take(order[start : start + BATCH])
            yield torch.from_numpy(layout(shifted(batch.pixels, random))), torch.from_numpy(batch.labels)


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    loss = functional.cross_entropy(network(inputs), labels, label_smoothing=0.05)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def predict(network: nn.Module, inputs: Floats) -> Floats:
    with torch.inference_mode():
        logits: Floats = network(torch.from_numpy(inputs)).numpy()
    return logits


def weights(network: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Every floating point parameter and running statistic, by its name."""
    state = network.state_dict().items()
    return {name: tensor.numpy() for name, tensor in state if tensor.is_floating_point()}
