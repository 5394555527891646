"""One seed gives many independent, named streams of random numbers.

A stream is a pure function of (seed, name, counters). Nothing random has to be stored with a
checkpoint, and a draw in one stream never moves another: a method that initialises more
parameters still sees the same images in the same order.

Names in use: "initialisation", "order", "augmentation" and "loss".
"""

import hashlib

import numpy as np

_WORD = 2**32


def stream(seed: int, name: str, *counters: int) -> np.random.Generator:
    """Generator of the stream `name`, at the place that `counters` (an iteration, a sample) say.

    Raises:
        ValueError: the seed or a counter is negative or does not fit in 32 bits.
    """
    return np.random.default_rng(_sequence(seed, name, counters))


def torch_seed(seed: int, name: str, *counters: int) -> int:
    """A 64-bit seed for `torch.manual_seed`, from the same streams as `stream`.

    Raises:
        ValueError: the seed or a counter is negative or does not fit in 32 bits.
    """
    return int(_sequence(seed, name, counters).generate_state(1, np.uint64)[0])


def _sequence(seed: int, name: str, counters: tuple[int, ...]) -> np.random.SeedSequence:
    # Each number must be one 32-bit word, or (2**32,) and (0, 1) would be the same entropy. Five
    # words or more keep numpy from padding with zeros, which would make (n,) and (n, 0) the same.
    for value in (seed, *counters):
        if not 0 <= value < _WORD:
            raise ValueError(f"{value} does not fit: a seed or counter lies in [0, 2**32)")
    digest = hashlib.sha256(name.encode()).digest()[:16]
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return np.random.SeedSequence([seed, *words, *counters])
