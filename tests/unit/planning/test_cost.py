"""The plan names as many checkpoints as it counts bytes of."""

import re

import pytest

from pretraining.planning.cost import DiskUsage


@pytest.mark.parametrize(
    ("num_checkpoints", "keeps_stable", "num_phase_ends", "text"),
    [
        (2, False, 0, "2 and one being written"),
        (2, True, 0, "2, wsd and one being written"),
        (2, False, 1, "3 and one being written"),
        (3, True, 2, "6 and one being written"),
        (None, False, 0, "2, and one more each --save_steps"),
    ],
)
def test_as_many_checkpoints_are_named_as_counted(
    num_checkpoints: int | None, keeps_stable: bool, num_phase_ends: int, text: str
) -> None:
    disk = DiskUsage(
        checkpoint_bytes=10,
        num_checkpoints=num_checkpoints,
        keeps_stable=keeps_stable,
        num_phase_ends=num_phase_ends,
        num_exports=0,
        export_bytes=0,
    )
    assert disk.checkpoints_description == text
    named = int(re.match(r"\d+", text)[0]) + text.count("wsd") + text.count("being written")  # type: ignore[index]
    assert num_checkpoints is None or disk.checkpoints_bytes == 10 * named
