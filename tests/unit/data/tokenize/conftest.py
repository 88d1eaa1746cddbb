"""The compiled loops, for all tests of this folder; the cache of this user has them after the first run."""

import numpy as np
import pytest

from pretraining.data.tokenize import bpe_merges, bpe_words
from pretraining.data.tokenize.compiled_backend import UNIT, Functions
from pretraining.system.compiled.cache import load_compiled


@pytest.fixture(scope="session")
def compiled() -> Functions:
    library = load_compiled(UNIT)
    return Functions(library["encode_batch"], library["fill_merges"])


@pytest.fixture(scope="session")
def interpreted() -> Functions:
    """The same functions as Python runs them, with arrays that check their bounds."""

    def encode_batch(*arguments: object) -> int:
        with np.errstate(over="ignore"):
            return bpe_words.encode_batch(*arguments)

    return Functions(encode_batch, bpe_merges.fill_merges)
