"""All checks in the order they run: what is quick first, what may hang last.

A check is named by room and function, since rooms import libraries that may be missing or broken here; only the
check's own process imports it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One function of a room, which yields findings, and the seconds it may take."""

    group: str
    name: str
    room: str
    function: str
    limit_seconds: float = 4.0


CHECKS = [
    Check("software", "python", "software", "python_version"),
    Check("software", "requirements.txt", "software", "requirements"),
    Check("software", "requirements.lock", "software", "lock"),
    Check("software", "deepspeed", "software", "launcher"),
    Check("software", "pynvml", "software", "pynvml_owner"),
    Check("software", "torch", "torch_build", "torch_build", 15.0),  # from a cold disk its import takes seconds
    Check("software", "DeepSpeed ops", "compilers", "deepspeed_ops"),
    Check("software", "extension locks", "compilers", "extension_locks"),
    Check("software", "environment", "environment", "variables"),
    Check("software", "encoding", "environment", "encoding"),
    Check("host", "cores", "host", "cores"),
    Check("host", "memory", "host", "memory"),
    Check("host", "shared memory", "host", "shared_memory"),
    Check("host", "kernel", "host", "kernel"),
    Check("host", "clock", "host", "clock"),
    Check("host", "limits", "limits", "limits"),
    Check("host", "control group", "limits", "control_group"),
    Check("host", "port", "leftovers", "launcher_port"),
    Check("host", "left processes", "leftovers", "orphans"),
    Check("disk", "disk", "disk", "run_folders", 10.0),
    Check("disk", "temporary folder", "disk", "temporary_folder"),
    Check("disk", "Hub cache", "disk", "hub_cache"),
    Check("Hub", "Hub", "hub", "hub", 7.0),
    Check("GPUs", "GPUs", "gpu_state", "gpus", 6.0),
    Check("GPUs", "GPU links", "gpu_links", "links"),
    Check("GPUs", "GPU processes", "gpu_state", "processes"),
    Check("speed", "arithmetic", "speed", "speed", 14.0),
    Check("speed", "all-reduce", "all_reduce", "all_reduce", 22.0),
]
