import pytest

from pretraining.data.encode.splits import SPLITS, SplitAssigner


def test_shares_are_those_of_the_weights() -> None:
    assigner = SplitAssigner((949, 50, 1), seed=0)
    splits = [assigner.split_of(b"document %d" % number) for number in range(40_000)]
    shares = [splits.count(split) / len(splits) for split in SPLITS]
    assert shares == pytest.approx([0.949, 0.05, 0.001], abs=0.004)


@pytest.mark.parametrize(("weights", "split"), [((1, 0, 0), "train"), ((0, 3, 0), "validation"), ((0, 0, 2), "test")])
def test_a_weight_of_zero_gets_nothing(weights: tuple[int, int, int], split: str) -> None:
    assigner = SplitAssigner(weights, seed=5)
    assert {assigner.split_of(str(number).encode()) for number in range(1000)} == {split}


def test_the_seed_alone_decides() -> None:
    texts = [b"document %d" % number for number in range(300)]
    first, again, other = ([SplitAssigner((1, 1, 1), seed=seed).split_of(text) for text in texts] for seed in (1, 1, 2))
    assert first == again
    assert first != other
