"""The ops that PyTorch and gradsmith spell alike: what their adapters share."""

from __future__ import annotations

from typing import Any

__all__ = ["Functional"]


class Functional:
    """Ops over ``self.F``, a module with the names of ``nn.functional``."""

    F: Any
    p: dict[str, Any]
    training: bool

    def weight(self, name: str) -> Any:
        return self.p[f"{name}.weight"]

    def linear(self, x: Any, name: str) -> Any:
        return self.F.linear(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def conv(self, x: Any, stride: int, padding: int, name: str) -> Any:
        weight, bias = self.p[f"{name}.weight"], self.p.get(f"{name}.bias")
        return self.F.conv2d(x, weight, bias, stride, padding)

    def batch_norm(self, x: Any, name: str) -> Any:
        p = self.p
        return self.F.batch_norm(
            x,
            p[f"{name}.running_mean"],
            p[f"{name}.running_var"],
            p[f"{name}.weight"],
            p[f"{name}.bias"],
            self.training,
        )

    def layer_norm(self, x: Any, name: str) -> Any:
        return self.F.layer_norm(x, x.shape[-1:], self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def relu(self, x: Any) -> Any:
        return self.F.relu(x)

    def gelu(self, x: Any) -> Any:
        return self.F.gelu(x, approximate="tanh")

    def add(self, a: Any, b: Any) -> Any:
        return a + b

    def max_pool(self, x: Any) -> Any:
        return self.F.max_pool2d(x, 2)

    def embedding(self, x: Any, name: str) -> Any:
        return self.F.embedding(x, self.p[f"{name}.weight"])

    def last(self, x: Any) -> Any:
        return x[:, -1]
