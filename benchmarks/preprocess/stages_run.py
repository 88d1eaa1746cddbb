"""A run of preprocess.py that adds up the CPU time of each stage, in whatever thread it is done.

python -m benchmarks.preprocess.stages_run RESULT --flags of preprocess.py. A stage is a function of the project,
without the other stages that it calls.
"""

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import preprocess
from pretraining.cli.program import run_program
from pretraining.system.cores import use_one_blas_thread

IMPORTS, REST = "Python and imports", "rest"
# Each stage, and the functions that do it as their callers find them: of compiled loops, and of other tokenizers.
STAGES = {
    "load the tokenizer": ["pretraining.data.tokenize.tokenizer:load_document_tokenizer"],
    "hash the input": ["pretraining.data.input.hashes:sha256_of"],
    "read lines": ["pretraining.data.build.work:read_batches"],
    "parse JSON": [
        "pretraining.data.encode.line_encoder:LineEncoder._read",
        "pretraining.data.encode.encoding:BatchEncoder._divide",
    ],
    "hash texts": [
        "pretraining.data.encode.line_encoder:LineEncoder._digests",
        "pretraining.data.encode.splits:SplitAssigner.digests",
    ],
    "encode": [
        "pretraining.data.tokenize.compiled_backend:CompiledBackend.encode_utf8",
        "pretraining.data.tokenize.tokenizer:DocumentTokenizer.encode",
    ],
    "check by the reference": [
        "pretraining.data.encode.line_encoder:LineEncoder._check",
        "pretraining.data.tokenize.tokenizer:DocumentTokenizer.check",
        "pretraining.data.tokenize.backends:CheckedBackend.check",
    ],
    "make columns": [
        "pretraining.data.encode.line_encoder:LineEncoder.encode",
        "pretraining.data.encode.encoding:BatchEncoder._encode",
    ],
    "divide by split": ["pretraining.data.build.work:prepare"],
    "pack": ["pretraining.data.store.packing:ConcatPacker.add"],
    "make tables of blocks": ["pretraining.data.build.slice_writer:block_table"],
    "make tables of documents": ["pretraining.data.build.slice_writer:document_rows"],
    "write Parquet": ["pretraining.data.store.shards:ShardWriter._write"],
    "flush and hash shards": [
        "pretraining.data.store.shards:HashedFile.write",
        "pretraining.data.store.shards:HashedFile.flush",
    ],
    "assemble": ["pretraining.data.build.pipeline:assemble"],
}
GENERATORS = ("read lines",)


class StageTimes:
    """CPU seconds by stage, of all threads."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()
        self._thread = threading.local()

    def call(self, stage: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call the function, and add its time without that of the stages it calls."""
        outer = getattr(self._thread, "inner_seconds", 0.0)
        self._thread.inner_seconds = 0.0
        started = time.thread_time()
        try:
            return function(*arguments, **named)
        finally:
            passed = time.thread_time() - started
            with self._lock:
                self.seconds[stage] += passed - self._thread.inner_seconds
            self._thread.inner_seconds = outer + passed

    def steps(self, stage: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Iterator[Any]:
        """Iterate over what a generator gives, and add the time of each step."""
        iterator = iter(function(*arguments, **named))
        while (item := self.call(stage, partial(next, iterator, None))) is not None:
            yield item

    def measure(self, stage: str, place: str) -> None:
        """Put a timer around a function of a stage."""
        module, name = place.split(":")
        owner: Any = importlib.import_module(module)
        *classes, attribute = name.split(".")
        for each in classes:
            owner = getattr(owner, each)
        function = getattr(owner, attribute)
        timer = self.steps if stage in GENERATORS else self.call
        setattr(owner, attribute, wraps(function)(partial_method(timer, stage, function)))


def partial_method(timer: Callable[..., Any], stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function, which unlike `partial` becomes a method in a class."""

    def timed(*arguments: Any, **named: Any) -> Any:
        return timer(stage, function, *arguments, **named)

    return timed


def main(argv: list[str]) -> None:
    """Run preprocess.py and write the seconds of its stages."""
    result, *flags = argv
    times = StageTimes()
    use_one_blas_thread()
    for stage, places in STAGES.items():
        for place in places:
            times.measure(stage, place)
    started = time.process_time()
    preprocess.main(flags)
    total = time.process_time()
    rest = total - started - sum(times.seconds.values())
    Path(result).write_text(json.dumps({IMPORTS: started, **times.seconds, REST: rest}))


if __name__ == "__main__":
    run_program(lambda _: main(sys.argv[1:]))
