import bisect
import json
import random
import re
import sys
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pretraining.data.build.working_files import write_arrays
from pretraining.data.encode.deduplicate import Duplicates
from pretraining.data.encode.minhash import (
    MinHashBands,
    cluster_duplicates,
    first_equal_rows,
    normalized,
    text_fingerprints,
)
from tests.conftest import PROJECT_DIR, run_fine

STORIES = [json.loads(line)["text"] for line in (PROJECT_DIR / "data/sample/news.jsonl").read_text().splitlines()]
CHINESE = "今天早上市政府宣布将在河边修建一座新的图书馆预计明年春天动工后年秋天向所有市民开放届时将有超过十万册图书"
THAI = "เมื่อเช้านี้เทศบาลประกาศว่าจะสร้างห้องสมุดแห่งใหม่ริมแม่น้ำและจะเปิดให้ประชาชนทุกคนเข้าใช้ในฤดูใบไม้ร่วงปีหน้า"
ODD_TEXTS = [
    "",
    " \n ",
    "yes",
    "no",
    "Yes we can",
    "🚆",
    "🚆🚆",
    "!?",
    "...",
    "東京",
    "京都",
    CHINESE,
    THAI,
    "a" * 9000,
]


bands_for = cache(MinHashBands)  # the search for their number takes a tenth of a second


def probability(minhash: MinHashBands, similarity: float) -> float:
    """The probability that texts of this Jaccard similarity (0 to 1) share a band."""
    return 1 - (1 - similarity**minhash.num_rows) ** minhash.num_bands


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def jaccard(first: str, second: str) -> float:
    one, other = shingles(first), shingles(second)
    return len(one & other) / len(one | other)


def with_changed_words(text: str, num_changed: int) -> str:
    """The text with some words, far from one another, replaced by numbers."""
    pieces = re.split(r"(\w+)", text)
    num_words = len(pieces) // 2
    for number in range(num_changed):
        word = (2 * number + 1) * num_words // (2 * num_changed)
        pieces[2 * word + 1] = str(number)
    return "".join(pieces)


def with_another_end(text: str, num_changed: int) -> str:
    """The text with its last words replaced by numbers."""
    words = text.split()
    return " ".join([*words[:-num_changed], *map(str, range(num_changed))])


def near_copies(texts: list[str], threshold: float = 0.8) -> list[int]:
    return cluster_duplicates(bands_for(threshold).bands(texts)).tolist()


def test_texts_are_the_same_up_to_case_form_and_whitespace() -> None:
    assert normalized(" Stra\u00dfe  nach\n\tCaf\u0065\u0301 ") == "strasse nach caf\u00e9"
    texts = ["One Story", "another", "one\n\nstory ", "One story.", "ANOTHER"]
    assert first_equal_rows(text_fingerprints(texts)).tolist() == [0, 1, 0, 3, 1]


def test_fingerprints_need_to_agree_in_both_words() -> None:
    rows = np.array([[1, 2], [2, 1], [1, 1], [2, 1], [1, 2]], dtype=np.uint64)
    assert first_equal_rows(rows).tolist() == [0, 1, 2, 1, 0]


def test_unrelated_stories_are_left_alone() -> None:
    assert near_copies(STORIES, threshold=0.7) == list(range(len(STORIES)))
    assert first_equal_rows(text_fingerprints(STORIES)).tolist() == list(range(len(STORIES)))


@pytest.mark.parametrize(
    ("threshold", "changed", "most_changed"),
    [(0.7, with_changed_words, 4), (0.8, with_changed_words, 3), (0.9, with_another_end, 4)],
)
def test_near_copies_are_found_and_the_first_stays(
    threshold: float, changed: Callable[[str, int], str], most_changed: int
) -> None:
    copies = [changed(story, 1 + number % most_changed) for number, story in enumerate(STORIES)]
    similar = [jaccard(*pair) >= threshold + 0.07 for pair in zip(STORIES, copies, strict=True)]
    assert sum(similar) > 50
    found = near_copies(STORIES + copies, threshold)
    assert found[: len(STORIES)] == list(range(len(STORIES)))
    hits = [found[len(STORIES) + number] == number for number in range(len(STORIES)) if similar[number]]
    assert np.mean(hits) >= 0.97


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_what_is_15_hundredths_less_similar_stays(threshold: float) -> None:
    others = []
    for story in STORIES:
        numbers = range(1, 100)  # the more words are changed, the less similar
        less_similar = bisect.bisect_left(
            numbers, True, key=lambda number: jaccard(story, with_another_end(story, number)) < threshold - 0.15
        )
        others.append(with_another_end(story, numbers[less_similar]))
    found = near_copies(STORIES + others, threshold)
    taken = [found[len(STORIES) + number] != len(STORIES) + number for number in range(len(STORIES))]
    assert np.mean(taken) <= probability(bands_for(threshold), threshold - 0.15) + 0.04


# Two are long: they lie between the others.
@pytest.mark.parametrize(
    "similarity", [0.6, 0.8, 0.9, *(pytest.param(between, marks=pytest.mark.long) for between in (0.7, 0.85))]
)
def test_the_share_of_copies_found_is_the_published_probability(similarity: float) -> None:
    generator = random.Random(0)
    num_shared = round(400 * 2 * similarity / (1 + similarity))
    firsts, seconds = [], []
    for _ in range(300):
        shared, first, second = (["".join(generator.choices("abcdefgh", k=9)) for _ in range(404)] for _ in range(3))
        firsts.append(" ".join(shared[: num_shared + 4] + first[num_shared + 4 :]))
        seconds.append(" ".join(shared[: num_shared + 4] + second[num_shared + 4 :]))
    minhash = bands_for(0.8)
    found = (minhash.bands(firsts) == minhash.bands(seconds)).any(axis=1).mean()
    assert jaccard(firsts[0], seconds[0]) == pytest.approx(similarity, abs=0.005)
    assert found == pytest.approx(probability(minhash, similarity), abs=0.07)


def test_bands_do_not_depend_on_how_the_texts_are_divided() -> None:
    texts = ODD_TEXTS + STORIES[:40]
    minhash = bands_for(0.8)
    whole = minhash.bands(texts)
    assert whole.shape == (len(texts), minhash.num_bands)
    assert whole.dtype == np.uint64
    for step in (1, 7):
        pieces = [minhash.bands(texts[start : start + step]) for start in range(0, len(texts), step)]
        assert np.array_equal(whole, np.concatenate(pieces))
    assert minhash.bands([]).shape == (0, minhash.num_bands)
    assert text_fingerprints([]).shape == (0, 2)


def test_keys_are_the_same_in_every_process_and_version() -> None:
    text, band, fingerprint = "The quick brown fox", 8605905281696684299, [10591240240696973720, 2475402731423035876]
    script = (
        "from pretraining.data.encode.minhash import MinHashBands, text_fingerprints\n"
        f"print(MinHashBands(0.8).bands(['{text} jumps over the lazy dog'])[0, 0])\n"
        f"print(text_fingerprints(['{text}'])[0].tolist())"
    )
    assert run_fine(sys.executable, "-c", script, env={"PYTHONHASHSEED": "1"}).stdout == f"{band}\n{fingerprint}\n"
    assert bands_for(0.8).bands([f"{text} jumps over the lazy dog"])[0, 0] == band
    assert text_fingerprints([text.replace(" ", "  ")])[0].tolist() == fingerprint


def test_odd_texts_are_copies_of_their_equals_alone() -> None:
    texts = ODD_TEXTS[1:]  # the first two are the same text
    for found in (near_copies(texts), first_equal_rows(text_fingerprints(texts)).tolist()):
        assert found == list(range(len(texts)))
    twice = near_copies(texts + texts)
    assert twice == [*range(len(texts)), *range(len(texts))]


@pytest.mark.parametrize("text", [CHINESE, THAI])
def test_near_copies_are_found_in_scripts_without_spaces(text: str) -> None:
    assert near_copies([text, text[:-2], text[::-1], text + "。"]) == [0, 0, 2, 0]


def test_groups_are_those_of_a_plain_search() -> None:
    generator = np.random.default_rng(0)
    for num_rows, num_keys in ((1, 2), (50, 40), (300, 400), (300, 3000), (2000, 4000)):
        keys = generator.integers(0, num_keys, (num_rows, 3), dtype=np.uint64)
        expected = np.arange(num_rows)
        while True:
            before = expected.copy()
            for column in keys.T:
                for key in np.unique(column):
                    expected[column == key] = expected[column == key].min()
            if np.array_equal(before, expected):
                break
        assert cluster_duplicates(keys).tolist() == expected.tolist()
    assert cluster_duplicates(keys[:0]).tolist() == []


def test_a_long_chain_of_copies_is_one_group() -> None:
    numbers = np.random.default_rng(0).permutation(100_000).astype(np.uint64)
    assert not cluster_duplicates(np.stack([numbers // 2, (numbers + 1) // 2], axis=1)).any()


def test_a_million_random_keys_are_no_copies() -> None:
    keys = np.random.default_rng(0).integers(0, 2**64, (1_000_000, 4), dtype=np.uint64)
    keys[999_999, 3] = keys[5, 3]
    expected = np.arange(1_000_000)
    expected[999_999] = 5
    assert np.array_equal(cluster_duplicates(keys), expected)


def test_a_copy_takes_17_bytes_and_is_found_by_its_place(tmp_path: Path) -> None:
    """Half a million copies in two files, in no order."""
    number = 500_000
    lines = np.random.default_rng(1).permutation(number)
    places = np.stack([lines % 2, lines + 1], axis=1)
    arrays = {"places": places, "originals": places - [0, 1], "is_near": lines % 3 == 0}
    write_arrays(tmp_path / "copies.npz", arrays)
    tracemalloc.start()
    copies = Duplicates(tmp_path / "copies.npz", ["a", "b"])
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 20 * number
    assert copies.original_of(1, 4) == ("near_duplicate", "b:3")
    assert copies.original_of(0, 5) == ("duplicate", "a:4")
    found = [copies.original_of(line % 2, line + 1) for line in range(0, number, 1000)]
    assert [place for _, place in filter(None, found)] == [f"{'ab'[n % 2]}:{n}" for n in range(0, number, 1000)]
    assert copies.original_of(0, 4) is None
    assert copies.original_of(0, number + 1) is None
    assert copies.original_of(2, 1) is None


def test_first_rows_are_those_of_a_plain_search() -> None:
    generator = np.random.default_rng(0)
    for num_rows, num_keys in ((0, 1), (1, 2), (50, 6), (500, 3), (500, 400)):
        rows = generator.integers(0, num_keys, (num_rows, 2), dtype=np.uint64)
        expected: dict[tuple[int, ...], int] = {}
        for number, row in enumerate(rows.tolist()):
            expected.setdefault(tuple(row), number)
        assert first_equal_rows(rows).tolist() == [expected[tuple(row)] for row in rows.tolist()]
