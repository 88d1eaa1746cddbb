"""Eight bytes as one number, whatever they are and wherever they stand."""

import numpy as np
import pytest

from pretraining.system.compiled.words import WORD_BYTES, load_word, store_word


@pytest.mark.parametrize("place", [0, 1, 5])
def test_what_is_stored_is_loaded(place: int) -> None:
    data = np.random.default_rng(place).integers(0, 256, 20, dtype=np.uint8)
    word = load_word(data, np.uint64(place))
    assert int(word) == int.from_bytes(data[place : place + WORD_BYTES].tobytes(), "little")
    other = np.zeros(20, np.uint8)
    store_word(other, np.uint64(place), word)
    assert other.tobytes() == bytes(place) + data[place : place + WORD_BYTES].tobytes() + bytes(12 - place)
