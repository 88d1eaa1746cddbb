from pretraining.training.micro_batch import largest
from pretraining.training.trial import FITS, OUT_OF_MEMORY, _outcome

SIZES = [1, 2, 4, 8, 16]


def found(limit: int, begin: int) -> tuple[int | None, list[int]]:
    tried = []

    def does_fit(number: int) -> bool:
        tried.append(number)
        return number <= limit

    return largest(SIZES, does_fit, begin=begin), tried


def test_the_largest_is_found_from_wherever_the_plan_begins() -> None:
    for limit in (0, *SIZES):
        for begin in range(len(SIZES)):
            assert found(limit, begin)[0] == (limit or None)


def test_a_plan_that_is_right_takes_two_trials() -> None:
    assert found(4, begin=2) == (4, [4, 8])
    assert found(16, begin=4) == (16, [16])


def test_only_what_ran_out_of_memory_does_not_fit() -> None:
    assert _outcome(0, "") == FITS
    assert _outcome(-9, "") == OUT_OF_MEMORY
    assert _outcome(1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate") == OUT_OF_MEMORY
    assert _outcome(1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory") == OUT_OF_MEMORY
    assert _outcome(2, "some warning\nerror: --dataset x: is missing\n") == "--dataset x: is missing"
    assert _outcome(1, "Traceback\nValueError: no\n") == "ValueError: no"
