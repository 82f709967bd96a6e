"""A character-level LSTM learns the made-up sentences of gs.data.make_text.

    python examples/char_lstm.py [--steps 2500] [--seed 0]

Prints the loss, then a sample and how many of its lines the grammar accepts.
"""

import argparse
import time

import numpy as np

import gradsmith as gs
from gradsmith import nn
from gradsmith.nn import functional as F


class CharLSTM(nn.Module):
    """tokens (B, T) -> logits (B, T, letters) and the state after the last."""

    def __init__(self, letters: int, width: int = 192):
        super().__init__()
        self.embed = nn.Embedding(letters, 48)
        self.lstm = nn.LSTM(48, width, batch_first=True)
        self.head = nn.Linear(width, letters)

    def forward(self, tokens, state=None):
        out, state = self.lstm(self.embed(tokens), state)
        return self.head(out), state


def sample(model: CharLSTM, first: np.ndarray, n: int, temperature: float, seed: int) -> np.ndarray:
    """n more tokens after `first` (B, 1)."""
    rng = np.random.default_rng(seed)
    tokens, state = [first], None
    with gs.no_grad():
        for _ in range(n):
            logits, state = model(gs.tensor(tokens[-1]), state)
            p = (
                F.softmax(logits[:, -1] * (1 / temperature), -1)
                .numpy()
                .astype(np.float64)
                .cumsum(-1)
            )
            u = rng.random((len(p), 1)) * p[:, -1:]
            tokens.append((p <= u).sum(-1, keepdims=True).astype(np.int64))
    return np.concatenate(tokens, 1)


def main(steps: int, seed: int, batch: int = 16, context: int = 64) -> float:
    gs.manual_seed(seed)
    rng = np.random.default_rng(seed)
    text = gs.data.make_text(4000, seed=0)
    letters = sorted(set(text))
    number = {c: i for i, c in enumerate(letters)}
    data = np.array([number[c] for c in text])
    model = CharLSTM(len(letters))
    optimizer = gs.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.01)
    schedule = gs.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    print(f"{len(text)} characters, {sum(p.size for p in model.parameters())} parameters")
    start = time.perf_counter()
    for step in range(steps):
        at = rng.integers(0, len(data) - context - 1, batch)[:, None] + np.arange(context + 1)
        chunk = data[at]
        optimizer.zero_grad()
        logits, _ = model(gs.tensor(chunk[:, :-1]))
        loss = F.cross_entropy(logits.reshape(-1, len(letters)), gs.tensor(chunk[:, 1:].ravel()))
        loss.backward()
        gs.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 499:
            print(f"step {step + 1}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s")
    out = sample(model, np.full((8, 1), number["\n"]), 400, 0.7, seed)
    lines = [s for row in out for s in "".join(letters[i] for i in row).split("\n")[1:-1]]
    good = sum(gs.data.is_sentence(s) for s in lines) / max(len(lines), 1)
    print("\n".join(lines[:8]))
    print(f"{good:.0%} of {len(lines)} lines are sentences of the grammar")
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(options.steps, options.seed)
