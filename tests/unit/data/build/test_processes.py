import os
from functools import partial
from pathlib import Path

import pytest

from pretraining.data.build.processes import make_each
from pretraining.data.build.work import Meter
from pretraining.errors import UserError


class Counts:
    """A meter that only adds up."""

    def __init__(self) -> None:
        self.skipped = [0, 0]
        self.added = [0, 0, 0]

    def skip(self, num_bytes: int, num_documents: int) -> None:
        self.skipped = [a + b for a, b in zip(self.skipped, (num_bytes, num_documents), strict=True)]

    def add(self, num_bytes: int, num_documents: int, num_tokens: int) -> None:
        self.added = [a + b for a, b in zip(self.added, (num_bytes, num_documents, num_tokens), strict=True)]


def note(folder: Path, number: int, meter: Meter) -> None:
    if number == 13:
        raise UserError("13: is unlucky; use 12")
    if number == 66:
        os._exit(6)
    meter.skip(number, 1)
    meter.add(number, 2, 3)
    (folder / str(number)).write_text(str(os.getpid()))


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_each_number_is_done_once_and_counted(num_processes: int, tmp_path: Path) -> None:
    meter = Counts()
    make_each(partial(note, tmp_path), range(7), meter, num_processes)
    assert sorted(path.name for path in tmp_path.iterdir()) == list("0123456")
    assert (meter.skipped, meter.added) == ([21, 7], [21, 14, 21])
    pids = {int(path.read_text()) for path in tmp_path.iterdir()}
    assert (os.getpid() in pids) == (num_processes == 1)
    assert len(pids) <= num_processes


@pytest.mark.parametrize(("number", "message"), [(13, "13: is unlucky; use 12"), (66, "ended with exit code 6")])
def test_what_goes_wrong_in_a_process_comes_out(number: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        make_each(partial(note, tmp_path), [1, number, 2], Counts(), 2)
