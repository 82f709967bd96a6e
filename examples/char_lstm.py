"""A character-level LSTM learns the made-up sentences of gs.data.make_text.

    python examples/char_lstm.py [--steps 2500] [--seed 0]

Prints the loss, then a sample and how many of its lines the grammar accepts.
"""

import numpy as np
from char_gpt import LETTERS, NUMBER, command, judge, learn

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
            p = F.softmax(logits[:, -1] * (1 / temperature), -1).numpy()
            p = p.astype(np.float64).cumsum(-1)
            u = rng.random((len(p), 1)) * p[:, -1:]
            tokens.append((p <= u).sum(-1, keepdims=True).astype(np.int64))
    return np.concatenate(tokens, 1)


def main(steps: int = 2500, seed: int = 0) -> float:
    gs.manual_seed(seed)
    model = CharLSTM(len(LETTERS))
    learn(model, lambda tokens: model(tokens)[0], 6e-3, steps, seed)
    return judge(sample(model, np.full((8, 1), NUMBER["\n"]), 400, 0.7, seed))


if __name__ == "__main__":
    command(main, 2500)
