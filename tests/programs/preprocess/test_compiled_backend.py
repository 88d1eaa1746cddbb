"""Whole runs with the compiled encoder: the same bytes as by the reference, whatever is wrong with it."""

import json
import os
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.conftest import PROJECT_DIR, python, run_fine
from tests.programs.launching import run_forked_fine
from tests.unit.data.build.test_partial_store import digests, stories

pytestmark = pytest.mark.launch
DRIVERS = PROJECT_DIR / "tests/faults/drivers/preprocess"
SMALL = ["--block_length", 64, "--split", "80,15,5", "--num_slices", 2]


@pytest.fixture(scope="module")
def llama_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as Llama 2's: no pre-tokenizer, spaces as U+2581, bytes of unknown characters."""
    folder = tmp_path_factory.mktemp("tokenizer")
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(stories(), trainers.BpeTrainer(vocab_size=1500, special_tokens=names))
    pipeline = json.loads(tokenizer.to_str())
    pipeline["added_tokens"] = [token for token in pipeline["added_tokens"] if token["content"] in names[:3]]
    tokenizer = Tokenizer.from_str(json.dumps(pipeline | {"pre_tokenizer": None}))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "data.jsonl"
    texts = [f"{n} {story}" for n, story in enumerate(stories() * 6)] + [f"{n} ¤ in the stack" for n in range(20_000)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert path.stat().st_size > 1 << 20, "large enough for the compiled encoder"
    return path


@pytest.fixture(scope="module")
def expected(corpus: Path, llama_like: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reference") / "blocks"
    flags = ["--data_files", corpus, *SMALL, "--tokenizer", llama_like, "--tokenizer_backend", "reference"]
    run_forked_fine(*python("preprocess.py", *flags, "--output_dir", folder))
    return digests(folder)


@pytest.mark.guarantee("A block store by the compiled encoder has the bytes of one by the reference.")
@pytest.mark.parametrize("backend", ["compiled", "auto"])
def test_the_bytes_are_those_of_the_reference(
    backend: str, corpus: Path, llama_like: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    flags = ["--data_files", corpus, *SMALL, "--tokenizer", llama_like, "--tokenizer_backend", backend]
    done = run_forked_fine(*python("preprocess.py", *flags, "--output_dir", tmp_path / "blocks"))
    assert "slower" not in done.stderr
    assert digests(tmp_path / "blocks") == expected


WRONG = {
    "table": ["compiled gives other ids than the reference from token", "¤ in the stack"],
    "text": ["the compiled loops read another text than the reference"],
}


@pytest.mark.guarantee("A wrong table or text of the compiled loops is found as they run, and the store is made again.")
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_found_and_the_store_made_again(
    what: str, corpus: Path, llama_like: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    flags = ["--data_files", corpus, *SMALL, "--tokenizer", llama_like, "--tokenizer_backend", "compiled"]
    done = run_forked_fine(sys.executable, DRIVERS / f"wrong_{what}.py", *flags, "--output_dir", tmp_path / "blocks")
    assert all(words in done.stderr for words in WRONG[what])
    assert "encoding everything again with the reference" in done.stderr
    assert digests(tmp_path / "blocks") == expected


@pytest.mark.guarantee("Without a compiler, or with one that fails, a block store has the same bytes.")
@pytest.mark.parametrize(  # the last one compiles
    "problem", ["numba is missing", "an unknown CPU", pytest.param("no folder for the cache", marks=pytest.mark.long)]
)
def test_whatever_is_wrong_with_the_compiler_the_bytes_are_the_same(
    problem: str, corpus: Path, llama_like: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    """A program whose threshold for a compilation is 0, as these inputs are small; it waits for the compiler."""
    code = (
        "import runpy, sys; sys.argv[0] = 'preprocess.py';"
        "from pretraining.data.tokenize import choice, compiled_backend;"
        "choice.MIN_BYTES_TO_COMPILE = 0;"
        "encode = compiled_backend.SwitchingBackend.encode;"
        "compiled_backend.SwitchingBackend.encode = lambda self, texts: (self.wait(), encode(self, texts))[1];"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    if problem == "numba is missing":
        code += "from pretraining.system.compiled import unit; unit.COMPILER_PACKAGES = ('no-such-package',);"
    elif problem == "an unknown CPU":
        environment |= {"NUMBA_CPU_NAME": "no-such-cpu", "NUMBA_CPU_FEATURES": ""}
    else:
        environment["XDG_CACHE_HOME"] = "/proc/self"  # not even root can create a folder there
    code += "runpy.run_path('preprocess.py', run_name='__main__')"
    program = tmp_path / "program.py"
    program.write_text(code)
    flags = ["--data_files", corpus, *SMALL, "--tokenizer", llama_like, "--output_dir", tmp_path / "blocks"]
    done = run_forked_fine(sys.executable, program, *flags, env=environment)
    lines = [line for line in done.stderr.splitlines() if "compiled" in line and "warning" in line.lower()]
    reasons = {
        "numba is missing": "no compiled encoder (no-such-package is not installed",
        "an unknown CPU": "no compiled encoder (the compiler ended with status",
        "no folder for the cache": "compiled functions cannot be kept there",
    }
    assert len(lines) == 1, done.stderr
    assert reasons[problem] in lines[0]
    assert digests(tmp_path / "blocks") == expected


@pytest.mark.long  # it compiles; what is kept in a cache: tests/unit/system/compiled
def test_a_run_that_ends_before_its_compiler_waits_for_it_once(
    corpus: Path, llama_like: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import runpy, sys; sys.argv[0] = 'preprocess.py'; sys.path.insert(0, '.');"
        "from pretraining.data.tokenize import choice; choice.MIN_BYTES_TO_COMPILE = 0;"
        "runpy.run_path('preprocess.py', run_name='__main__')"
    )
    cache = tmp_path / "cache"
    flags = ["--data_files", corpus, *SMALL, "--tokenizer", llama_like]
    waited = []
    for name in ("first", "second"):
        words = [*flags, "--output_dir", tmp_path / name]
        done = run_fine(sys.executable, "-c", code, *words, env={**os.environ, "XDG_CACHE_HOME": str(cache)})
        assert digests(tmp_path / name) == expected
        waited.append("compiling the encoder of later runs, once on this machine" in done.stderr)
        assert len([path for path in (cache / "pretraining/compiled").iterdir() if path.suffix != ".lock"]) == 1
    assert waited == [True, False]
