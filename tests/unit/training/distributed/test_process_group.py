"""What a run on the CPU warns of, GPUs that torch cannot use or a build for GPUs without their driver; too few GPUs."""

import pytest
import torch

from pretraining.errors import UserError
from pretraining.training.distributed import process_group
from pretraining.training.distributed.process_group import check_num_processes

GPU = "NVIDIA H200"


@pytest.mark.parametrize(
    ("driver_gpus", "build", "visible", "expected"),
    [
        ([], None, None, None),
        ([], "13.0", None, "is built for GPUs, but no NVIDIA driver answers, so this runs on the CPU"),
        ([], "13.0", "", None),  # as --use_cpu does
        ([GPU, GPU], None, None, f"the driver has 2 GPUs ({GPU}) that torch {torch.__version__} cannot use"),
        ([GPU], "13.0", "0", f"the driver has 1 GPUs ({GPU})"),
        ([GPU], "13.0", "", None),
    ],
)
def test_missing_gpus_are_one_warning(
    driver_gpus: list[str],
    build: str | None,
    visible: str | None,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(process_group, "driver_gpu_names", lambda: driver_gpus)
    monkeypatch.setattr(process_group, "has_gpu", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    check_num_processes()
    warnings = [record.getMessage() for record in caplog.records if "runs on the CPU" in record.getMessage()]
    assert len(warnings) == (expected is not None)
    if expected is not None:
        assert expected in warnings[0]
        assert "python3 -m tools.doctor" in warnings[0]


def test_tasks_of_srun_that_see_one_gpu_each_are_told_the_flags_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(UserError, match="--num_gpus=8: this machine has 1; start with --num_gpus=1"):
        check_num_processes()
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "16")
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "3")
    expected = (
        "srun: 8 tasks on this machine, and each sees 1 of its GPUs; start with --gpu-bind=none --gpus-per-node=8"
    )
    with pytest.raises(UserError, match=expected):
        check_num_processes()
