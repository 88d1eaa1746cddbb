"""Functions that the tests compile."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Tables(NamedTuple):
    weights: NDArray[np.int64]
    totals: NDArray[np.float64]


class Uniform(NamedTuple):
    first: NDArray[np.int64]
    second: NDArray[np.int64]


def bucket(value: int) -> int:
    return np.int64((np.uint64(value) * MULTIPLIER) >> np.uint64(60))


def weigh(data: NDArray[np.uint8], tables: Tables, scale: float, start: int) -> int:
    total = start
    for n in range(len(data)):
        weight = tables.weights[bucket(data[n])]
        total += weight
        tables.totals[n] = weight * scale
    return total


def swap(pair: Uniform) -> int:
    for n in range(len(pair.first)):
        pair.first[n], pair.second[n] = pair.second[n], pair.first[n]
    return len(pair.first)


def needs_python(data: NDArray[np.uint8]) -> int:
    print(len(data))  # noqa: T201
    return 0


def wait_long(rounds: int) -> int:
    value = np.uint64(1)
    for n in range(rounds):
        value = value * MULTIPLIER + np.uint64(n)
    return np.int64(value & np.uint64(255))


def takes_a_complex_number(value: complex) -> int:
    return int(value.real)
