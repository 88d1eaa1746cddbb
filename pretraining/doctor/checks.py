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
    Check("software", "python", "software.packages", "python_version"),
    Check("software", "requirements.txt", "software.packages", "requirements"),
    Check("software", "requirements.lock", "software.packages", "lock"),
    Check("software", "deepspeed", "software.packages", "launcher"),
    Check("software", "pynvml", "software.packages", "pynvml_owner"),
    Check(
        "software", "torch", "software.torch_build", "torch_build", 15.0
    ),  # from a cold disk its import takes seconds
    Check("software", "DeepSpeed ops", "software.compilers", "deepspeed_ops"),
    Check("software", "extension locks", "software.compilers", "extension_locks"),
    Check("software", "environment", "software.environment", "variables"),
    Check("software", "encoding", "software.environment", "encoding"),
    Check("host", "cores", "host.host", "cores"),
    Check("host", "memory", "host.host", "memory"),
    Check("host", "shared memory", "host.host", "shared_memory"),
    Check("host", "kernel", "host.host", "kernel"),
    Check("host", "clock", "host.host", "clock"),
    Check("host", "limits", "host.limits", "limits"),
    Check("host", "control group", "host.limits", "control_group"),
    Check("host", "port", "host.stale", "launcher_port"),
    Check("host", "left processes", "host.stale", "orphans"),
    Check("disk", "disk", "host.disk", "run_folders", 10.0),
    Check("disk", "temporary folder", "host.disk", "temporary_folder"),
    Check("disk", "Hub cache", "host.disk", "hub_cache"),
    Check("Hub", "Hub", "hub", "hub", 7.0),
    Check("GPUs", "GPUs", "gpu.state", "gpus", 6.0),
    Check("GPUs", "GPU links", "gpu.links", "links"),
    Check("GPUs", "GPU processes", "gpu.state", "processes"),
    Check("speed", "arithmetic", "gpu.speed", "speed", 14.0),
    Check("speed", "all-reduce", "gpu.all_reduce", "all_reduce", 22.0),
]
