"""PyTorch's weights in gradsmith's layouts, and back.

PyTorch's images are (N, C, H, W), gradsmith's (N, H, W, C); names of modules and parameters are the same. What
differs in a state dict is where the channels stand:

    convolution            (out, in/groups, kh, kw)  ->  (out, kh, kw, in/groups)
    transposed convolution (in, out/groups, kh, kw)  ->  (in, kh, kw, out/groups)
    Linear, BatchNorm1d    columns c H W + h W + w   ->  h W C + w C + c, where they read a flattened image

Everything else (Linear, norms, embeddings, attention, recurrent layers) is the same array. PyTorch itself is
imported only where its tensors are made or its files are read.
"""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.autograd import enable_grad
from ..core.tensor import Tensor, as_tensor
from ..nn import BatchNorm1d, LayerNorm, Linear, Module, RMSNorm
from ..nn.conv import _Conv
from ..nn.module import LoadResult
from ..ops.shape import ReshapeBackward

__all__ = ["from_torch", "load_state_dict", "to_torch"]

# Rules that keep the order of the features: what may stand between a flattening and its layer.
_KEEP_ORDER = tuple(f"gradsmith.ops.{f}" for f in ("activation", "dropout", "norm"))


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ImportError("interop.torch: this needs PyTorch: pip install torch") from None
    return torch


def _array(name: str, value: Any) -> np.ndarray:
    """The values of a torch Tensor (of any device and float type), a Tensor or an array."""
    if isinstance(value, Tensor):
        value = value.data
    elif hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        if value.is_floating_point() and value.element_size() < 4:  # NumPy has no bfloat16
            value = value.float()
        value = value.numpy()
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(
            f"interop.torch: {name!r} is a {type(value).__name__}, not a tensor. Pass the state dict itself, "
            "such as checkpoint['state_dict']"
        )
    a = np.asarray(value)
    return a.astype(np.float32) if a.dtype == np.float16 else a


def _read(state: Any) -> Mapping[str, Any]:
    if isinstance(state, (str, os.PathLike)):
        path = os.fspath(state)
        if path.endswith(".safetensors"):
            from .safetensors import load

            state = load(path)
        else:
            state = _torch().load(path, map_location="cpu", weights_only=True)
    elif not isinstance(state, Mapping) and hasattr(state, "state_dict"):
        state = state.state_dict()
    if not isinstance(state, Mapping):
        raise TypeError(
            f"interop.torch: expected a state dict, a module or a file, got {type(state).__name__}"
        )
    for prefix in ("module.", "_orig_mod."):  # of DataParallel and of torch.compile
        if state and all(isinstance(n, str) and n.startswith(prefix) for n in state):
            state = {n[len(prefix) :]: v for n, v in state.items()}
    return state


def _flattened(model: Module, example: Any) -> dict[str, tuple[int, ...]]:
    """For each layer that reads a flattened image: the image's shape, channels last."""
    found: dict[str, tuple[int, ...]] = {}
    handles = []

    def watch(name: str) -> Any:
        def look(module: Module, args: tuple) -> None:
            node = args[0]._node if args and isinstance(args[0], Tensor) else None
            while node is not None:
                if isinstance(node, ReshapeBackward):
                    inner = node.shape[1:]
                    if len(inner) > 1 and args[0].shape == (node.shape[0], int(np.prod(inner))):
                        found[name] = tuple(inner)
                    return
                if type(node).__module__ not in _KEEP_ORDER or not node.edges:
                    return
                node = node.edges[0] and node.edges[0][0]

        return look

    modes = [(m, m.training) for m in model.modules()]
    try:
        for name, m in model.named_modules():
            if isinstance(m, (Linear, BatchNorm1d)):
                handles.append(m.register_forward_pre_hook(watch(name)))
        model.eval()
        inputs = example if isinstance(example, tuple) else (example,)
        watched = []
        for x in inputs:
            t = as_tensor(x).detach()
            watched.append(t.requires_grad_() if t.dtype.kind == "f" else t)
        with enable_grad():
            model(*watched)
    finally:
        for h in handles:
            h.remove()
        for m, training in modes:
            m.__dict__["training"] = training
    return found


def _warn_of_images(modules: Mapping[str, Module]) -> None:
    """The first Linear after a convolution may read its flattened image; nothing but an example tells."""
    channels = 0  # of the convolution since the last Linear
    for name, m in modules.items():
        if isinstance(m, _Conv):
            channels = m.out_channels
        elif isinstance(m, Linear):
            if channels and m.in_features > channels and m.in_features % channels == 0:
                warnings.warn(
                    f"interop.torch: {name!r} ({m.in_features} features) may read a flattened image, whose "
                    "columns PyTorch orders (C, H, W). Pass example=, an input of the model, or "
                    f"flatten={{{name!r}: (H, W, C)}}; flatten={{}} where none does",
                    stacklevel=4,
                )
                return
            channels = 0


def _plan(model: Module, example: Any, flatten: Mapping[str, Any] | None) -> dict[str, Any]:
    """What happens to each name: ("channels", axis in PyTorch), ("flat", axis, image), or None."""
    images = {} if example is None else _flattened(model, example)
    modules = dict(model.named_modules())
    if example is None and flatten is None:
        _warn_of_images(modules)
    for name, shape in (flatten or {}).items():
        if not isinstance(modules.get(name), (Linear, BatchNorm1d)):
            raise ValueError(
                f"interop.torch: flatten names {name!r}, which is no Linear or BatchNorm1d of the model"
            )
        images[name] = tuple(int(s) for s in shape)
    plan: dict[str, Any] = {}
    for prefix, m in model._all_modules(""):
        image = images.get(prefix[:-1])
        if image is not None:
            size = m.in_features if isinstance(m, Linear) else m.num_features
            if int(np.prod(image)) != size:
                raise ValueError(
                    f"interop.torch: {prefix[:-1]!r} reads {size} features, an image of shape {image} (H, W, C) "
                    f"has {int(np.prod(image))}"
                )
        for table in (m._parameters, m._buffers):
            for name, t in table.items():
                if t is None:
                    continue
                step: Any = None
                if isinstance(m, _Conv) and name == "weight":
                    step = ("channels", 1)
                elif image is not None and isinstance(m, Linear) and name == "weight":
                    step = ("flat", 1, image)
                elif image is not None and isinstance(m, BatchNorm1d) and t.ndim == 1:
                    step = ("flat", 0, image)
                elif isinstance(m, (LayerNorm, RMSNorm)) and t.ndim == 3:  # of whole images
                    step = ("channels", 0)
                plan[prefix + name] = step
    return plan


def _convert(a: np.ndarray, step: Any, back: bool = False) -> np.ndarray:
    """One array in the other layout. What does not fit stays as it is and is refused later."""
    if step is None or a.ndim < 1:
        return a
    if step[0] == "channels":
        return np.moveaxis(a, -1, step[1]) if back else np.moveaxis(a, step[1], -1)
    _, axis, (*inner, channels) = step
    n = len(inner)
    if axis >= a.ndim or a.shape[axis] != int(np.prod(inner)) * channels:
        return a
    image = (*inner, channels) if back else (channels, *inner)
    x = a.reshape(*a.shape[:axis], *image, *a.shape[axis + 1 :])
    x = np.moveaxis(x, axis + n, axis) if back else np.moveaxis(x, axis, axis + n)
    return x.reshape(a.shape)


def from_torch(
    model: Module, state: Any, example: Any = None, flatten: Mapping[str, Any] | None = None
) -> OrderedDict[str, np.ndarray]:
    """A PyTorch state dict as arrays in gradsmith's layouts, for `model.load_state_dict`.

    model: the gradsmith module that the weights are for; its layers say which arrays are kernels of convolutions.
    state: names to torch tensors or arrays; or a torch module; or a file, `.safetensors` or what `torch.save` wrote
    (read with weights_only=True). Half-precision values become float32.

    A Linear (or BatchNorm1d) that reads a flattened image has its columns in another order. Two ways to find them:
    example, an input of the model (a tuple for several), which is run through it once in evaluation mode; or
    flatten={"fc1": (H, W, C)}. Without either, columns stay as they are, with a warning where one may read an image.

    Parameters that do not belong to a layer of gradsmith are taken as they are.
    TypeError: values that are no tensors. ValueError: a shape, or flatten, that does not fit the model.

    >>> import numpy as np, gradsmith as gs
    >>> state = {"weight": np.zeros((8, 3, 5, 5), np.float32), "bias": np.zeros(8, np.float32)}
    >>> gs.interop.torch.from_torch(gs.nn.Conv2d(3, 8, 5), state)["weight"].shape
    (8, 5, 5, 3)
    """
    if not isinstance(model, Module):
        raise TypeError(
            f"interop.torch: the first argument is a gradsmith module, got {type(model).__name__}"
        )
    plan = _plan(model, example, flatten)
    own = dict(model._state())
    out: OrderedDict[str, np.ndarray] = OrderedDict()
    for name, value in _read(state).items():
        a = _array(name, value)
        step = plan.get(name)
        if name in plan:
            want = _convert(own[name].data, step, back=True).shape
            if a.shape != want:
                raise ValueError(
                    f"interop.torch: {name!r} has shape {a.shape}; {type(model).__name__} takes {want} in PyTorch's "
                    "layout"
                )
        out[name] = np.array(_convert(a, step), order="C")
    return out


def load_state_dict(
    model: Module,
    state: Any,
    strict: bool = True,
    example: Any = None,
    flatten: Mapping[str, Any] | None = None,
) -> LoadResult:
    """Loads a PyTorch state dict into a module; arguments as in `from_torch`, all checked before any is changed.

    Returns (missing_keys, unexpected_keys). KeyError: names that do not match (strict). ValueError: a shape that
    does not fit, told in PyTorch's layout.

    >>> import numpy as np, gradsmith as gs
    >>> layer = gs.nn.Conv1d(4, 2, 3, bias=False)
    >>> w = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    >>> gs.interop.torch.load_state_dict(layer, {"weight": w}).missing_keys
    []
    >>> bool((layer.weight.detach().numpy() == w.transpose(0, 2, 1)).all())
    True
    """
    arrays = from_torch(model, state, example, flatten)
    return model.load_state_dict(arrays, strict)


def to_torch(
    model: Module, example: Any = None, flatten: Mapping[str, Any] | None = None
) -> OrderedDict[str, Any]:
    """The state dict of a module as torch tensors in PyTorch's layouts, for `load_state_dict` of a torch module.

    example, flatten: as in `from_torch`, for layers that read a flattened image. The tensors are copies.
    ImportError without PyTorch.

    >>> import gradsmith as gs
    >>> state = gs.interop.torch.to_torch(gs.nn.Conv2d(3, 8, 5))  # doctest: +SKIP
    >>> tuple(state["weight"].shape)  # doctest: +SKIP
    (8, 3, 5, 5)
    """
    torch = _torch()
    plan = _plan(model, example, flatten)
    out: OrderedDict[str, Any] = OrderedDict()
    for name, t in model._state():
        a = _convert(t.data, plan[name], back=True)
        out[name] = torch.from_numpy(np.array(a, order="C"))
    return out
