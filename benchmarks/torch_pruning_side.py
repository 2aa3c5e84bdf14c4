"""The other side of filter_removal.py: Torch-Pruning, in an environment of its own.

    python -m venv peer && peer/bin/pip install torch==2.13.0 torch-pruning==1.6.1
    echo resnet50 | peer/bin/python benchmarks/torch_pruning_side.py

Stays alive: each line of stdin names a network, and is answered by one JSON line on stdout, the seconds of each step.
An argument gives the number of threads.
The networks are those of torchvision, written plainly, with random weights; a new one is made for every measurement.
"""

from __future__ import annotations

import copy
import json
import sys
import time

import torch
import torch_pruning as tp
from torch import nn

SIZE, CLASSES = 224, 1000
RATIO, ROUND_TO = 0.5, 8


class Residual(nn.Module):
    """body(x) + skip(x), then `after`."""

    def __init__(self, body: nn.Module, skip: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.skip, self.after = body, skip or nn.Identity(), after or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.body(x) + self.skip(x))


class Dense(nn.Module):
    """DenseNet: x and what the body makes of it, side by side."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], 1)


def conv(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias, then BatchNorm."""
    return [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def average(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]


def resnet50() -> nn.Sequential:
    parts = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, (inner, depth) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for i in range(depth):
            stride = 2 if i == 0 and stage else 1
            body = nn.Sequential(
                *conv(width, inner), nn.ReLU(), *conv(inner, inner, 3, stride), nn.ReLU(), *conv(inner, 4 * inner)
            )
            skip = nn.Sequential(*conv(width, 4 * inner, 1, stride)) if i == 0 else None
            parts.append(Residual(body, skip, nn.ReLU()))
            width = 4 * inner
    return nn.Sequential(*parts, *average(width))


def vgg16_bn() -> nn.Sequential:
    parts: list[nn.Module] = []
    width = 3
    for filters, depth in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
        for _ in range(depth):
            parts += [nn.Conv2d(width, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU()]
            width = filters
        parts.append(nn.MaxPool2d(2))
    parts += [nn.Flatten(), nn.Linear(512 * (SIZE // 32) ** 2, 4096), nn.ReLU(), nn.Dropout()]
    parts += [nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, CLASSES)]
    return nn.Sequential(*parts)


def mobilenet_v2() -> nn.Sequential:
    parts = [*conv(3, 32, 3, 2), nn.ReLU6()]
    width = 32
    for expand, filters, depth, first in [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]:  # fmt: skip
        for i in range(depth):
            stride, inner = first if i == 0 else 1, expand * width
            grow = [*conv(width, inner), nn.ReLU6()] if expand > 1 else []
            body = nn.Sequential(*grow, *conv(inner, inner, 3, stride, inner), nn.ReLU6(), *conv(inner, filters))
            parts.append(Residual(body) if stride == 1 and width == filters else body)
            width = filters
    return nn.Sequential(*parts, *conv(width, 1280), nn.ReLU6(), *average(1280))


def densenet121() -> nn.Sequential:
    parts = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width, growth = 64, 32
    for block, depth in enumerate([6, 12, 24, 16]):
        if block:
            half = width // 2
            parts += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, half, 1, bias=False), nn.AvgPool2d(2)]
            width = half
        for _ in range(depth):
            grow = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
            body = [nn.BatchNorm2d(width), nn.ReLU(), *conv(width, 4 * growth), nn.ReLU(), grow]
            parts.append(Dense(nn.Sequential(*body)))
            width += growth
    return nn.Sequential(*parts, nn.BatchNorm2d(width), nn.ReLU(), *average(width))


NETWORKS = {f.__name__: f for f in (resnet50, vgg16_bn, mobilenet_v2, densenet121)}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def measure(model: nn.Sequential) -> dict[str, float]:
    """Seconds to trace the network, to choose what goes, and to rewrite the weights in place."""
    image, before = torch.randn(1, 3, SIZE, SIZE), parameters(model)
    start = time.perf_counter()
    pruner = tp.pruner.BasePruner(
        model,
        image,
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=RATIO,
        round_to=ROUND_TO,
        ignored_layers=[model[-1]],  # its outputs are the classes
    )
    traced, rewrite = time.perf_counter(), 0.0
    for group in pruner.step(interactive=True):  # as step() does, with a clock around the rewriting
        now = time.perf_counter()
        group.prune()
        rewrite += time.perf_counter() - now
    end = time.perf_counter()
    return {
        "graph": traced - start,
        "choose": end - traced - rewrite,
        "rewrite": rewrite,
        "params_left": parameters(model) / before,
    }


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    whole: dict[str, nn.Sequential] = {}
    for name in map(str.strip, sys.stdin):
        if name not in whole:
            whole = {name: NETWORKS[name]().eval()}
        print(json.dumps(measure(copy.deepcopy(whole[name]))), flush=True)


if __name__ == "__main__":
    main()
