"""A store without duplicates has the same bytes whether compiled loops or Python and datasketch find them."""

import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest

from pretraining.data.encode.fast_keys import LOAD_BYTES, UNIT
from pretraining.system.compiled.cache import load_compiled
from tests.conftest import PROJECT_DIR, python, run_fine

# Long: that both ways compute the same is in tests/unit/data/encode/test_fast_keys.py.
pytestmark = [pytest.mark.long, pytest.mark.skipif(find_spec("numba") is None, reason="needs Numba")]
TEXTS = [json.loads(line)["text"] for line in (PROJECT_DIR / "data/sample/news.jsonl").read_text().splitlines()]


def written(path: Path) -> Path:
    """More text than is worth loading the loops: copies with changed words, other documents, and other scripts."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < 1.1 * LOAD_BYTES[True]:
            words = generator.choice(TEXTS).split(" ")
            kind = generator.randrange(4)
            for _ in range(kind):
                words[generator.randrange(len(words))] = generator.choice(["e\u0301t\u0329e", "東京", "Ünï", "x"])
            if kind == 3:
                generator.shuffle(words)
            file.write(json.dumps({"text": " ".join(words)}, ensure_ascii=generator.random() < 0.5) + "\n")
    return path


def files_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_both_ways_make_the_same_store(tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl")
    load_compiled(UNIT)  # into the cache of this user
    stores = []
    for name, environment in (("compiled", {}), ("python", {"XDG_CACHE_HOME": str(tmp_path / "empty")})):
        flags = ["--data_files", data, "--output_dir", tmp_path / name, "--exact_duplicates", "--near_duplicates", 0.8]
        done = run_fine(*python("preprocess.py", *flags), env=environment)
        assert "compiled loops cannot be used" not in done.output
        stores.append(files_of(tmp_path / name))
    assert stores[0] == stores[1]
    skipped = [json.loads(line) for line in stores[0]["skipped.jsonl"].splitlines()]
    reasons = [record["reason"] for record in skipped]
    assert min(reasons.count(reason) for reason in ("duplicate", "near_duplicate")) > 20
