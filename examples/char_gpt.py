"""A character-level GPT learns the made-up sentences of gs.data.make_text.

    python examples/char_gpt.py [--steps 2000] [--seed 0]

Prints the loss, then a sample and how many of its lines the grammar accepts. The training loop serves
char_lstm.py too: one captured step, a learning rate that a schedule moves, batches cut from the text at random.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

import gradsmith as gs
from gradsmith.nn import functional as F

TEXT = gs.data.make_text(4000, seed=0)
LETTERS = sorted(set(TEXT))
NUMBER = {c: i for i, c in enumerate(LETTERS)}


def learn(
    model: gs.nn.Module,
    logits_of: Callable[[gs.Tensor], gs.Tensor],
    lr: float,
    steps: int,
    seed: int,
    batch: int = 16,
    context: int = 64,
) -> None:
    """`steps` steps of AdamW on `batch` pieces of `context` letters each, to predict each next letter."""
    rng = np.random.default_rng(seed)
    data = np.array([NUMBER[c] for c in TEXT])
    optimizer = gs.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = gs.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    print(f"{len(TEXT)} characters, {sum(p.size for p in model.parameters())} parameters")

    @gs.capture
    def step(tokens, following):
        optimizer.zero_grad()
        loss = F.cross_entropy(logits_of(tokens).reshape(-1, len(LETTERS)), following)
        loss.backward()
        gs.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    start = time.perf_counter()
    for i in range(steps):
        at = rng.integers(0, len(data) - context - 1, batch)[:, None] + np.arange(context + 1)
        chunk = data[at]
        loss = step(gs.tensor(chunk[:, :-1]), gs.tensor(chunk[:, 1:].ravel()))
        schedule.step()
        if i % 500 == 499:
            print(f"step {i + 1}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s")


def judge(samples: np.ndarray) -> float:
    """Prints the first lines of `samples` (rows of letters' numbers); the share that the grammar accepts."""
    texts = ["".join(LETTERS[i] for i in row) for row in samples]
    lines = [line for text in texts for line in text.split("\n")[1:-1]]
    good = sum(gs.data.is_sentence(line) for line in lines) / max(len(lines), 1)
    print("\n".join(lines[:8]))
    print(f"{good:.0%} of {len(lines)} lines are sentences of the grammar")
    return good


def main(steps: int = 2000, seed: int = 0) -> float:
    gs.manual_seed(seed)
    model = gs.models.gpt(len(LETTERS), 64, width=128, layers=3, heads=4)
    learn(model, model, 2e-3, steps, seed)
    return judge(model.generate(np.full((8, 1), NUMBER["\n"]), 400, temperature=0.7).numpy())


def command(run: Callable[[int, int], float], steps: int) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run(options.steps, options.seed)


if __name__ == "__main__":
    command(main, 2000)
