"""ResNet-18 on Fashion-MNIST: default and strict convolutions and PyTorch, from the same weights on the same batches.

    python bench/resnet18_accuracy.py [--data DIR] [--images 12000] [--epochs 2] [--seeds 0 1 2] [--json F]

DIR holds the four IDX files (by default where Debian's package puts them). For each seed the three runs start from one set of weights and see the same
batches (AdamW, one-cycle schedule); what differs is how the convolutions are computed: Winograd F(4x4) where it
is fastest, direct and F(2x2) only (``gs.set_conv_precision("strict")``), or PyTorch's. The accuracy is that of the
whole test set. The records are written after every run, so that a run that is stopped keeps what it has.
"""

import argparse
import json
import time

import numpy as np

import gradsmith as gs
import gradsmith.nn.functional as F

BATCH, LR, DECAY = 64, 2e-3, 0.01


def batches(images: np.ndarray, labels: np.ndarray, epochs: int, seed: int):
    """All batches of a run, in the order that every variant sees."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for i in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[i : i + BATCH]
            yield images[rows], labels[rows]


def one_cycle(steps: int):
    """Learning rate by step: linear up over 30 % of the run, then cosine to nothing."""
    up = max(1, int(0.3 * steps))
    rising = np.linspace(LR / 25, LR, up)
    return np.concatenate([rising, LR * 0.5 * (1 + np.cos(np.linspace(0, np.pi, steps - up)))])


def train_gradsmith(model, stream, rates, test) -> tuple[float, float]:
    optimizer = gs.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)

    @gs.capture
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    loss = gs.tensor(0.0)
    for rate, (x, y) in zip(rates, stream, strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        loss = step(gs.tensor(x), gs.tensor(y))
    last = loss.item()
    model.eval()
    right = 0
    with gs.no_grad():
        for i in range(0, len(test[0]), 500):
            logits = model(gs.tensor(test[0][i : i + 500])).numpy()
            right += int((logits.argmax(1) == test[1][i : i + 500]).sum())
    return right / len(test[0]), last


def train_torch(state, stream, rates, test) -> tuple[float, float]:
    import torch
    from torch import nn

    def conv(i, o, k, s):
        return nn.Conv2d(i, o, k, stride=s, padding=k // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, i, o, s):
            super().__init__()
            self.conv1, self.bn1 = conv(i, o, 3, s), nn.BatchNorm2d(o)
            self.conv2, self.bn2 = conv(o, o, 3, 1), nn.BatchNorm2d(o)
            if s != 1 or i != o:
                self.downsample = nn.Sequential(conv(i, o, 1, s), nn.BatchNorm2d(o))

        def forward(self, x):
            shortcut = self.downsample(x) if hasattr(self, "downsample") else x
            y = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(self.bn2(self.conv2(y)) + shortcut)

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = conv(1, 64, 3, 1), nn.BatchNorm2d(64)
            width = 64
            for n, s in enumerate((1, 2, 2, 2)):
                o = 64 << n
                layer = nn.Sequential(Block(width, o, s), Block(o, o, 1))
                setattr(self, f"layer{n + 1}", layer)
                width = o
            self.fc = nn.Linear(width, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            for n in range(4):
                x = getattr(self, f"layer{n + 1}")(x)
            return self.fc(x.mean((2, 3)))

    model = ResNet()
    turned = {
        name: torch.from_numpy(np.array(a.transpose(0, 3, 1, 2) if a.ndim == 4 else a, order="C"))
        for name, a in state.items()
    }
    missing, unexpected = model.load_state_dict(turned, strict=False)
    if unexpected or any("num_batches" not in name for name in missing):
        raise SystemExit(f"state dicts differ: {missing} {unexpected}")
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    loss = torch.zeros(())

    def turn(x):
        return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)

    for rate, (x, y) in zip(rates, stream, strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(turn(x)), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
    model.eval()
    right = 0
    with torch.no_grad():
        for i in range(0, len(test[0]), 500):
            logits = model(turn(test[0][i : i + 500])).numpy()
            right += int((logits.argmax(1) == test[1][i : i + 500]).sum())
    return right / len(test[0]), loss.item()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    p.add_argument("--images", type=int, default=12_000, help="training images, the first ones")
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--variants", nargs="+", default=["default", "strict", "torch"])
    p.add_argument("--json")
    a = p.parse_args()

    sets = []
    for part in gs.data.fashion_mnist(a.data):
        images, labels = part.arrays
        images = np.asarray(images, np.float32).reshape(len(images), 28, 28, 1)
        sets.append((images / max(1.0, float(images.max())), np.asarray(labels, np.int64)))
    (images, labels), test = sets
    images, labels = images[: a.images], labels[: a.images]
    mean, std = images.mean(), images.std()
    images, test = (images - mean) / std, ((test[0] - mean) / std, test[1])
    steps = a.epochs * (len(images) // BATCH)
    rates = one_cycle(steps)

    records = []
    for seed in a.seeds:
        for variant in a.variants:
            gs.manual_seed(seed)
            model = gs.models.resnet18(in_channels=1)
            stream = batches(images, labels, a.epochs, seed)
            start = time.perf_counter()
            if variant == "torch":
                state = {k: np.array(v.numpy()) for k, v in model.state_dict().items()}
                accuracy, loss = train_torch(state, stream, rates, test)
            else:
                gs.set_conv_precision("strict" if variant == "strict" else "default")
                accuracy, loss = train_gradsmith(model, stream, rates, test)
                gs.set_conv_precision("default")
            seconds = time.perf_counter() - start
            print(f"seed {seed}  {variant:8} {accuracy:.4f}  last loss {loss:.4f}  {seconds:.0f} s")
            records.append(
                dict(seed=seed, variant=variant, accuracy=accuracy, loss=loss, seconds=seconds)
            )
            if a.json:
                with open(a.json, "w") as f:
                    shape = dict(images=len(images), epochs=a.epochs, batch=BATCH, lr=LR)
                    json.dump({**shape, "runs": records}, f, indent=1)


if __name__ == "__main__":
    main()
