"""Find the duplicates of one file and print the seconds of each part: a process of benchmarks/duplicates.py.

python3 -m benchmarks.duplicates_run WAY THREADS FILE
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from pretraining.data.encode import fast_keys
from pretraining.data.encode.deduplicate import KeyExtractor, write_duplicates, write_keys
from pretraining.data.encode.encoding import DocumentReader
from pretraining.data.encode.fast_keys import UNIT
from pretraining.data.input.documents import ReadingOptions
from pretraining.data.input.filters import CleaningRules, TextFilter
from pretraining.data.input.find import find_inputs
from pretraining.data.input.reading import read_batches
from pretraining.data.input.slices import cut_slices
from pretraining.system.compiled.cache import load_compiled

ALWAYS, NEVER = {True: 0, False: 0}, {True: 1 << 60, False: 1 << 60}


def measure(way: str, num_threads: int, path: str, folder: Path) -> dict[str, float]:
    """Seconds of start-up, keys (wall and CPU) and grouping; documents, and bytes of memory at the peak."""
    if way.endswith("compiled"):
        load_compiled(UNIT)  # so that a first start compiles before anything is timed
    fast_keys.LOAD_BYTES = ALWAYS if way.endswith("compiled") else NEVER
    rules = CleaningRules(exact_duplicates=True, near_duplicates=None if way.startswith("exact") else 0.8)
    options = ReadingOptions(6 << 20, "text")
    files = find_inputs([path])
    (ranges,) = cut_slices(files, 1)
    started_at = time.perf_counter()
    extractor = KeyExtractor(DocumentReader(options, TextFilter(rules)), rules, 0)
    extractor.keys_of(0, [])
    read_at, cpu_before = time.perf_counter(), time.process_time()
    for _ in write_keys(
        folder / "keys.npz", extractor, read_batches(files, ranges, None, options), num_workers=num_threads
    ):
        pass
    grouped_at, cpu_after = time.perf_counter(), time.process_time()
    write_duplicates(folder / "duplicates.npz", [folder / "keys.npz"], rules)
    return {
        "start_seconds": read_at - started_at,
        "wall_seconds": grouped_at - read_at,
        "cpu_seconds": cpu_after - cpu_before,
        "group_seconds": time.perf_counter() - grouped_at,
        "num_documents": Path(path).read_bytes().count(b"\n"),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(temporary))))  # noqa: T201
