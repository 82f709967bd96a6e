"""The passes of a captured program (csrc/graph), their switches, and what is on by default."""

from __future__ import annotations

from typing import Any

PASSES = {
    "side_by_side": "independent small kernels run on different threads",
    "barriers": "threads wait for each other only where memory crosses from one to another",
    "memory": "arrays whose lives do not meet share memory",
    "in_place": "an elementwise kernel or a batch norm writes over an input that nobody reads afterwards",
    "relu_pool": "ReLU and the max-pool behind it in one kernel, forward and backward",
    "conv_pool": "convolution (few channels or Winograd) with the 2 x 2 max-pool behind it, also backward",
    "norm_relu": "batch norm with the sum and the ReLU behind it in one kernel, forward and backward",
    "norm_stats": "statistics of a batch norm taken while the convolution before it makes its output",
    "bias_relu": "matmul, convolution and their bias with the ReLU behind them in one kernel",
    "bias_activation": "matmul and its bias with the activation behind them in one kernel",
    "activation_gradient": "the product that makes a gradient takes it through the activation",
    "gradient_sum": "the convolution that makes a gradient adds the other one of a sum",
    "conv_gradient": "the convolution that makes a gradient takes it through the ReLU",
    "norm_gradient": "the same where the ReLU is part of a batch norm with a sum",
    "residual": "a sum behind a matmul in the matmul's kernel",
    "norm_sum": "the gradient of a layer norm and the gradient that is added to it in one kernel",
    "pieces": "parts of a sum are written into it, not into zeros that are added",
    "last_step": "the gradient of a recurrent layer's last step is not put into zeros for all the others",
    "optimizer": "each layer's update right after its gradients (when no gradient norm is asked for)",
    "gradient_update": "the product that makes a gradient updates the parameter, piece by piece "
    "(None: not where a fast third cache holds all that the update touches)",
    "transposed": "a result that only products read is stored as the next one reads it",
    "prepared_weights": "weights that the program leaves alone stay transformed or packed between replays",
    "prepared_updates": "an update writes the transformed or packed weights for the next replay, too",
}

# Right, but no gain on the machines measured (docs/performance.md): on only where asked for.
UNPAID = ("bias_activation", "activation_gradient", "prepared_updates")


def options(passes: Any) -> dict[str, bool | None]:
    if passes is True:
        return dict.fromkeys(PASSES, True)
    chosen: dict[str, bool | None] = {name: name not in UNPAID for name in PASSES}
    chosen["gradient_update"] = None
    if passes is None:
        return chosen
    if passes is False:
        return dict.fromkeys(PASSES, False)
    if isinstance(passes, dict):
        given = passes
    else:
        given = {**dict.fromkeys(PASSES, False), **dict.fromkeys(passes, True)}
    for name, on in given.items():
        if name not in PASSES:
            raise ValueError(f"capture: unknown pass {name!r}; there are {', '.join(PASSES)}")
        chosen[name] = None if on is None and name == "gradient_update" else bool(on)
    return chosen
