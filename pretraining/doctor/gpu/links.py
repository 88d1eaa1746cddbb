"""How the GPUs are connected with each other and with the host."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from pretraining.doctor.finding import Finding, ok, warning
from pretraining.doctor.gpu.nvml import open_gpus, told

READ = 0  # what to ask peer access for; pynvml's own NVML_P2P_CAPS_INDEX_READ is a tuple by mistake


@dataclass(frozen=True)
class Link:
    """NVLinks that are up, and PCI Express now and at best; at rest a GPU lowers the generation, not the width."""

    num_nvlinks: int
    generation: int | None
    best_generation: int | None
    width: int | None
    best_width: int | None

    def __str__(self) -> str:
        return f"{self.num_nvlinks or 'no'} NVLinks, PCIe {self.best_generation} x{self.width}"


def links(_: Sequence[Path]) -> Iterator[Finding]:
    """Each GPU's links, and whether GPUs reach each other's memory."""
    try:
        with open_gpus() as handles:
            found = [_link(handle) for handle in handles]
            reaches = [_reach(*pair) for pair in itertools.combinations(handles, 2)]
    except pynvml.NVMLError:
        return
    most = max((link.num_nvlinks for link in found), default=0)
    for number, link in enumerate(found):
        yield judge_link(number, link, most_nvlinks=most)
    if reaches:
        yield judge_reach(reaches)


def nvlinks_everywhere() -> bool:
    """Whether every GPU has a link to others."""
    try:
        with open_gpus() as handles:
            return all(_link(handle).num_nvlinks for handle in handles)
    except pynvml.NVMLError:
        return False


def judge_link(number: int, link: Link, *, most_nvlinks: int) -> Finding:
    """Whether a GPU has the lanes that it could have, and as many NVLinks as the others."""
    name, fix = f"GPU {number} link", f"nvidia-smi nvlink -s -i {number}; nvidia-smi topo -m"
    if link.num_nvlinks < most_nvlinks:
        return warning(name, f"{link}; another GPU has {most_nvlinks} NVLinks", fix, **vars(link))
    if link.width is not None and link.best_width is not None and link.width < link.best_width:
        fix = f"nvidia-smi -q -i {number} | grep -A12 'GPU Link Info'"
        return warning(name, f"{link}, of x{link.best_width}: is it seated in a full slot?", fix, **vars(link))
    return ok(name, str(link), **vars(link))


def judge_reach(reaches: Sequence[bool]) -> Finding:
    """Whether pairs of GPUs reach each other's memory; consumer cards do not, and exchange through the host."""
    if all(reaches):
        return ok("peer access", f"between all {len(reaches)} pairs")
    figure = f"missing between {reaches.count(False)} of {len(reaches)} pairs, which exchange through host memory"
    return warning("peer access", figure, "nvidia-smi topo -p2p r; sudo dmesg | grep -i -e iommu -e acs")


def _link(handle: Any) -> Link:
    states = (told(pynvml.nvmlDeviceGetNvLinkState, handle, link) for link in range(pynvml.NVML_NVLINK_MAX_LINKS))
    return Link(
        num_nvlinks=sum(state == pynvml.NVML_FEATURE_ENABLED for state in states),
        generation=told(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
        best_generation=told(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        width=told(pynvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        best_width=told(pynvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
    )


def _reach(first: Any, second: Any) -> bool:
    return told(pynvml.nvmlDeviceGetP2PStatus, first, second, READ) == pynvml.NVML_P2P_STATUS_OK
