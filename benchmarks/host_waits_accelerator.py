"""A CPU that behaves like a GPU towards DeepSpeed and the trainer: streams, events, and a host that runs ahead.

Nothing is asynchronous. Each operation of torch takes the next place of the current stream, and it is unfinished until
the host waits for this place: a GPU that is always behind its host. So a wait shows, however fast the machine is. Waits
for finished places are none: on a GPU they return at once.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default")
GATHERS = "gathers"  # the stream of this name
# How DeepSpeed asks whether it needs streams and events at all.
IMMEDIATE = ("is_synchronized_device", "resolves_data_dependency", "handles_memory_backpressure")
LIBRARIES = ("/torch/", "/contextlib.py", "host_waits_accelerator.py")
Places = dict[str, int]  # of streams, by their names


@dataclass
class Waits:
    """What the host waited for, and what the gradients moved, since the last `take`."""

    layers_back: list[int] = field(default_factory=list)  # of each event that was waited for
    counts: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)  # of the code, for a message
    gradient_bytes: int = 0
    collectives: int = 0  # in the path of the gradients
    late_weights: int = 0  # gathered when their layer needs them, not before


class Timeline:
    """The places of all streams, which of them are finished, and the layers that were launched."""

    def __init__(self) -> None:
        self.reached: dict[str, Places] = {"compute": {}}  # what the next operation of a stream comes after
        self.finished: Places = {}
        self.current = ["compute"]
        self.layer_starts: list[int] = []
        self.waits = Waits()
        self.moves_gradients = False

    def launch(self) -> None:
        """An operation on the current stream."""
        places = self.reached[self.current[-1]]
        places[self.current[-1]] = places.get(self.current[-1], 0) + 1

    def start_layer(self) -> None:
        """The host launches a layer, in forward or backward."""
        self.layer_starts.append(self.reached["compute"].get("compute", 0))

    def is_finished(self, places: Places) -> bool:
        """Whether a GPU has come there."""
        return all(self.finished.get(name, 0) >= place for name, place in places.items())

    def layers_since(self, places: Places) -> int:
        """The layers that were launched after a place, so that the GPU has work when the host is back."""
        return sum(start >= places.get("compute", 0) for start in self.layer_starts)

    def finish(self, places: Places) -> None:
        """The host has waited."""
        _join(self.finished, places)

    def finish_all(self) -> None:
        """The host has waited for the whole device, as it does once per step."""
        for places in self.reached.values():
            self.finish(places)

    def note(self, kind: str) -> None:
        """A wait of the host, with the code that asked for it."""
        self.waits.counts[kind] += 1
        self.waits.places[f"{kind} in {_caller()}"] += 1

    def take(self) -> Waits:
        """The waits since the last call."""
        found, self.waits = self.waits, Waits()
        return found


def _join(places: Places, others: Places) -> None:
    for name, place in others.items():
        places[name] = max(places.get(name, 0), place)


def _caller() -> str:
    """The innermost functions outside torch and this module."""
    frame: FrameType | None = sys._getframe(2)
    names: list[str] = []
    while frame is not None and len(names) < 2:
        if not any(part in frame.f_code.co_filename for part in LIBRARIES):
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return " of ".join(names)


class Stream:
    """A stream of a timeline, with the methods of torch.cuda.Stream that DeepSpeed calls."""

    def __init__(self, timeline: Timeline, name: str) -> None:
        self._timeline = timeline
        self.name = name
        timeline.reached.setdefault(name, {})

    def wait_stream(self, other: "Stream") -> None:
        """What follows on this stream comes after what is on the other."""
        _join(self._timeline.reached[self.name], self._timeline.reached[other.name])

    def synchronize(self) -> None:
        """The host waits, if anything on this stream is unfinished."""
        places = self._timeline.reached[self.name]
        if not self._timeline.is_finished(places):
            self._timeline.note("stream synchronization")
            self._timeline.finish(places)


class Event:
    """An event of a timeline, with the methods of torch.cuda.Event that DeepSpeed calls."""

    def __init__(self, timeline: Timeline, **_: Any) -> None:
        self._timeline = timeline
        self._stream = ""
        self._places: Places = {}

    def record(self, *_: Any) -> None:
        """Take the present place of the current stream."""
        self._stream = self._timeline.current[-1]
        self._places = dict(self._timeline.reached[self._stream])

    def query(self) -> bool:
        """Whether a GPU has come there."""
        return self._timeline.is_finished(self._places)

    def synchronize(self) -> None:
        """The host waits, if the place is unfinished."""
        if not self.query():
            self._timeline.note("wait for a gather" if self._stream == GATHERS else "event wait")
            self._timeline.waits.layers_back.append(self._timeline.layers_since(self._places))
            self._timeline.finish(self._places)


def install(timeline: Timeline) -> None:
    """Have DeepSpeed's CPU accelerator use the streams and events of a timeline."""
    streams = {"compute": Stream(timeline, "compute")}

    def make_stream(*_: Any, **__: Any) -> Stream:
        gathers = "parameter_offload" in sys._getframe(1).f_code.co_filename
        made = Stream(timeline, GATHERS if gathers else f"stream {len(streams)}")
        return streams.setdefault(made.name, made)

    @contextmanager
    def on_stream(_: Any, stream: Stream | None) -> Iterator[None]:
        timeline.current.append(timeline.current[-1] if stream is None else stream.name)
        try:
            yield
        finally:
            timeline.current.pop()

    def synchronize(*_: Any) -> None:
        timeline.note("device synchronization")
        timeline.finish_all()

    replaced: dict[str, Any] = {
        **dict.fromkeys(IMMEDIATE, lambda _: False),
        "stream": on_stream,
        "current_stream": lambda *_: streams[timeline.current[-1]],
        "default_stream": lambda *_: streams["compute"],
        "Stream": property(lambda _: make_stream),
        "Event": property(lambda _: partial(Event, timeline)),
        "synchronize": synchronize,
    }
    for name, value in replaced.items():
        setattr(type(get_accelerator()), name, value)
    Tensor.record_stream = lambda *_: None


class OperationLog(TorchDispatchMode):
    """Gives each operation its place, notes reads by the host, and counts the bytes that move gradients."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self._timeline = timeline

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, timeline = str(operation), self._timeline
        result = operation(*args, **(kwargs or {}))
        if name in HOST_READS:
            timeline.note("host read")
            timeline.finish(timeline.reached[timeline.current[-1]])
        if operation.is_view:
            return result
        timeline.launch()
        if timeline.moves_gradients:
            if name.startswith("c10d"):
                timeline.waits.collectives += 1
            else:
                timeline.waits.gradient_bytes += _moved_bytes(operation, args, result)
        return result


def _moved_bytes(operation: Any, args: Any, result: Any) -> int:
    """Bytes that are read and written; `copy_` does not read its target, and creation writes nothing yet."""
    if not str(operation).startswith("aten.") or "empty" in str(operation):
        return 0
    is_copy = operation is torch.ops.aten.copy_.default
    read = sum(map(_num_bytes, args[1:] if is_copy else args))
    return read + _num_bytes(result)


def _num_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_num_bytes, value)) if isinstance(value, list | tuple) else 0


@contextmanager
def reads_noted(timeline: Timeline) -> Iterator[None]:
    """Note the ways of a tensor to the host that are no operation where the device is the host."""
    kept = {name: getattr(Tensor, name) for name in ("cpu", "tolist", "numpy")}
    for name, method in kept.items():
        setattr(Tensor, name, _noting(timeline, method))
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Tensor, name, method)


def _noting(timeline: Timeline, method: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        timeline.note("host read")
        return method(*args, **kwargs)

    return noted
