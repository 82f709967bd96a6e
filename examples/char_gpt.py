"""A character-level GPT learns the made-up sentences of gs.data.make_text.

    python examples/char_gpt.py [--steps 2000] [--seed 0]

Prints the loss, then a sample and how many of its lines the grammar accepts.
"""

import argparse
import time

import numpy as np

import gradsmith as gs
from gradsmith.nn import functional as F


def main(steps: int, seed: int, batch: int = 16, context: int = 64) -> float:
    gs.manual_seed(seed)
    rng = np.random.default_rng(seed)
    text = gs.data.make_text(4000, seed=0)
    letters = sorted(set(text))
    number = {c: i for i, c in enumerate(letters)}
    data = np.array([number[c] for c in text])
    model = gs.models.gpt(len(letters), context, width=128, layers=3, heads=4)
    optimizer = gs.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = gs.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    print(f"{len(text)} characters, {sum(p.size for p in model.parameters())} parameters")
    start = time.perf_counter()
    for step in range(steps):
        at = rng.integers(0, len(data) - context - 1, batch)[:, None] + np.arange(context + 1)
        chunk = data[at]
        optimizer.zero_grad()
        logits = model(gs.tensor(chunk[:, :-1]))
        loss = F.cross_entropy(logits.reshape(-1, len(letters)), gs.tensor(chunk[:, 1:].ravel()))
        loss.backward()
        gs.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 499:
            print(f"step {step + 1}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s")
    prompt = np.full((8, 1), number["\n"])
    out = model.generate(prompt, 400, temperature=0.7).numpy()
    lines = [s for row in out for s in "".join(letters[i] for i in row).split("\n")[1:-1]]
    good = sum(gs.data.is_sentence(s) for s in lines) / max(len(lines), 1)
    print("\n".join(lines[:8]))
    print(f"{good:.0%} of {len(lines)} lines are sentences of the grammar")
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(options.steps, options.seed)
