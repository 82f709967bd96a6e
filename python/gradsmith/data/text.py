"""A text of made-up sentences with a grammar that can be checked, for models of sequences."""

from __future__ import annotations

import re

import numpy as np

__all__ = ["is_sentence", "make_text"]

_NOUNS = [
    "cat",
    "dog",
    "bird",
    "child",
    "teacher",
    "farmer",
    "sailor",
    "king",
    "queen",
    "horse",
    "painter",
    "doctor",
]
_PLURAL = {"child": "children"}
_ADJECTIVES = ["small", "old", "quiet", "clever", "hungry", "brave", "young", "tired"]
_VERBS = ["see", "follow", "like", "help", "chase", "hear", "find", "call"]  # with an object
_ALONE = ["sleep", "sing", "laugh", "wait", "run", "smile", "rest", "dance"]  # without
_PLACES = ["river", "garden", "house", "market", "forest", "bridge", "harbour", "tower"]
_WHERE = ["near", "in", "behind", "beside"]


def _plural(noun: str) -> str:
    return _PLURAL.get(noun, noun + "s")


def _third(verb: str) -> str:
    """The verb of one subject: chase -> chases."""
    return verb + ("es" if verb.endswith("ch") else "s")


def _pick(rng: np.random.Generator, words: list[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _noun(rng: np.random.Generator, many: bool, clause: bool) -> str:
    determiner = _pick(rng, ["the", "two", "many"] if many else ["the", "a", "every"])
    words = [determiner]
    if rng.random() < 0.4:
        words.append(_pick(rng, _ADJECTIVES))
    noun = _pick(rng, _NOUNS)
    words.append(_plural(noun) if many else noun)
    if words[:2] and words[0] == "a" and words[1][0] in "aeiou":
        words[0] = "an"
    if clause and rng.random() < 0.35:
        words += ["that", _verb(rng, many)]
    return " ".join(words)


def _verb(rng: np.random.Generator, many: bool) -> str:
    if rng.random() < 0.5:
        verb = _pick(rng, _ALONE)
        words = verb if many else _third(verb)
        if rng.random() < 0.5:
            words += f" {_pick(rng, _WHERE)} the {_pick(rng, _PLACES)}"
        return words
    verb = _pick(rng, _VERBS)
    return f"{verb if many else _third(verb)} {_noun(rng, rng.random() < 0.5, False)}"


def make_text(n_sentences: int = 1000, seed: int = 0) -> str:
    """Sentences of a small grammar of English, one a line, the same for the same seed.

    The verb agrees with its subject even across a clause between them ("the cat that hears two dogs
    sleeps."), so a model has to remember. About 38 characters a sentence, 26 different ones.
    ValueError: n_sentences below 1.

    >>> import gradsmith as gs
    >>> text = gs.data.make_text(5, seed=1)
    >>> len(text.splitlines()), all(gs.data.is_sentence(s) for s in text.splitlines())
    (5, True)
    """
    if n_sentences < 1:
        raise ValueError(f"make_text: n_sentences must be at least 1, got {n_sentences}")
    rng = np.random.Generator(np.random.Philox(key=seed))
    lines = []
    for _ in range(n_sentences):
        many = bool(rng.random() < 0.5)
        lines.append(f"{_noun(rng, many, True)} {_verb(rng, many)}.\n")
    return "".join(lines)


def _any(words: list[str]) -> str:
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


def _pattern() -> re.Pattern[str]:
    adjective, place = _any(_ADJECTIVES), f"(?: {_any(_WHERE)} the {_any(_PLACES)})?"
    vowel = _any([w for w in _ADJECTIVES if w[0] in "aeiou"])
    other = _any([w for w in _ADJECTIVES if w[0] not in "aeiou"])
    noun, nouns = _any(_NOUNS), _any([_plural(n) for n in _NOUNS])
    one = f"(?:(?:the|every)(?: {adjective})? {noun}|a(?: {other})? {noun}|an {vowel} {noun})"
    many = f"(?:(?:the|two|many)(?: {adjective})? {nouns})"
    object_ = f"(?:{one}|{many})"

    def verb(third: bool) -> str:
        alone = [_third(v) for v in _ALONE] if third else _ALONE
        verbs = [_third(v) for v in _VERBS] if third else _VERBS
        return f"(?:{_any(alone)}{place}|{_any(verbs)} {object_})"

    return re.compile(
        f"{one}(?: that {verb(True)})? {verb(True)}\\.|{many}(?: that {verb(False)})? {verb(False)}\\."
    )


_SENTENCE = _pattern()


def is_sentence(line: str) -> bool:
    """Whether the grammar of ``make_text`` can make this line (without its newline).

    >>> import gradsmith as gs
    >>> gs.data.is_sentence("two dogs that wait see a cat."), gs.data.is_sentence("two dogs sleeps.")
    (True, False)
    """
    return _SENTENCE.fullmatch(line) is not None
