"""ResNet-18, with the names of torchvision's state dict."""

from __future__ import annotations

from typing import Any

from .. import nn
from ..core.tensor import Tensor
from ..nn import functional as F

__all__ = ["BasicBlock", "ResNet", "resnet18"]


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)); the shortcut is 1x1 where shapes change.

    x (N, H, W, in_channels) -> (N, ceil(H / stride), ceil(W / stride), channels). Errors as in `nn.Conv2d`.

    He, Zhang, Ren & Sun 2016, Deep Residual Learning for Image Recognition.

    >>> import gradsmith as gs
    >>> gs.models.BasicBlock(4, 8, stride=2)(gs.zeros(2, 6, 6, 4)).shape
    (2, 3, 3, 8)
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Any) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet(nn.Module):
    """Residual network of basic blocks; see ``resnet18``.

    blocks: how many blocks each stage has, of 64, 128, 256, ... channels; from the second on, a stage halves
    height and width.

    >>> import gradsmith as gs
    >>> net = gs.models.ResNet((1, 1), num_classes=10, in_channels=3, small_images=True)
    >>> net(gs.zeros(2, 8, 8, 3)).shape, len(net.layer2)
    ((2, 10), 1)
    """

    def __init__(
        self, blocks: tuple[int, ...], num_classes: int, in_channels: int, small_images: bool
    ) -> None:
        super().__init__()
        self.small_images = small_images
        if small_images:
            self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width = 64
        for i, count in enumerate(blocks):
            channels = 64 << i
            layer = []
            for j in range(count):
                layer.append(BasicBlock(width, channels, 2 if i > 0 and j == 0 else 1))
                width = channels
            self.register_module(f"layer{i + 1}", nn.Sequential(*layer))
        self.layers = len(blocks)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Any) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        if not self.small_images:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for i in range(self.layers):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(x.mean((1, 2)))  # (N, H, W, C) -> (N, C)


def resnet18(num_classes: int = 10, in_channels: int = 3, small_images: bool = True) -> ResNet:
    """ResNet-18: x (N, H, W, in_channels) -> logits (N, num_classes).

    ``small_images`` (32x32 and thereabouts): a 3x3 first convolution without stride or pooling,
    11,173,962 parameters for 10 classes. Otherwise the ImageNet form, a 7x7 convolution of stride 2
    and a 3x3 max-pool. The names are those of torchvision's resnet18 (``layer1.0.conv1.weight``);
    convolution weights are (out, kh, kw, in) here: ``w.transpose(0, 2, 3, 1)`` of PyTorch's.
    Sizes that are no positive integers are errors of `nn.Conv2d` and `nn.Linear`.

    He, Zhang, Ren & Sun 2016, Deep Residual Learning for Image Recognition.

    >>> import gradsmith as gs
    >>> sum(p.size for p in gs.models.resnet18().parameters())
    11173962
    """
    return ResNet((2, 2, 2, 2), num_classes, in_channels, small_images)
