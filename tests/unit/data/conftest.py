"""The compiled loops, for all tests of data; the cache of this user has them after the first run."""

from collections.abc import Callable

import numpy as np
import pytest

from pretraining.data.encode import blake2b
from pretraining.data.input.json import loops
from pretraining.data.tokenize import bpe_merges, bpe_words
from pretraining.data.tokenize.compiled_backend import UNIT, Functions
from pretraining.system.compiled.cache import load_compiled


@pytest.fixture(scope="session")
def compiled() -> Functions:
    library = load_compiled(UNIT)
    return Functions(*(library[entry] for entry in UNIT.entries))


@pytest.fixture(scope="session")
def interpreted() -> Functions:
    """The same functions as Python runs them, with arrays that check their bounds."""
    return Functions(
        *map(_wrapping, (bpe_words.encode_batch, bpe_merges.fill_merges, loops.read_json_lines, blake2b.hash_texts))
    )


def _wrapping(function: Callable[..., int]) -> Callable[..., int]:
    """The function with numbers that wrap without a warning, as compiled ones do."""

    def call(*arguments: object) -> int:
        with np.errstate(over="ignore"):
            return function(*arguments)

    return call
