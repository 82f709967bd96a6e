"""A small convolutional network for small images, after LeNet-5."""

from __future__ import annotations

from typing import Any

from .. import nn
from ..core.tensor import Tensor
from ..nn import functional as F

__all__ = ["LeNet", "lenet"]


class LeNet(nn.Module):
    """conv 32 - pool - conv 64 - pool - dense 128 - dense; see ``lenet``, which checks its arguments.

    >>> import gradsmith as gs
    >>> gs.models.LeNet(1, 10, image_size=(8, 12), dropout=0.25)(gs.zeros(2, 8, 12, 1)).shape
    (2, 10)
    """

    def __init__(
        self, in_channels: int, num_classes: int, image_size: tuple[int, int], dropout: float
    ) -> None:
        super().__init__()
        height, width = image_size
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.drop1 = nn.Dropout(dropout)
        self.fc1 = nn.Linear(64 * (height // 4) * (width // 4), 128)
        self.drop2 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, x: Any) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)  # (N, H/2, W/2, 32)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)  # (N, H/4, W/4, 64)
        x = self.drop1(x.reshape(x.shape[0], -1))
        x = self.drop2(F.relu(self.fc1(x)))
        return self.fc2(x)


def lenet(
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: int | tuple[int, int] = 28,
    dropout: float = 0.25,
) -> LeNet:
    """A convolutional network of LeNet's shape with today's parts (421,738 parameters at 28x28).

    x (N, image_size, image_size, in_channels) -> logits (N, num_classes): twice a 3x3 convolution
    (32, then 64 channels), batch norm, ReLU and 2x2 max-pooling; then dropout, a dense layer of
    128, ReLU, dropout and the classifier. Raises ValueError for images below 4x4.

    After LeCun, Bottou, Bengio & Haffner 1998, Gradient-Based Learning Applied to Document
    Recognition.

    >>> import gradsmith as gs
    >>> gs.models.lenet(image_size=8).fc1.weight.shape
    (128, 256)
    """
    size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < 4:
        raise ValueError(f"lenet: image_size {image_size} must be at least 4 in both directions.")
    return LeNet(in_channels, num_classes, (size[0], size[1]), dropout)
