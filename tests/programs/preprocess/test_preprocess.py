"""Whole runs of preprocess.py: the same bytes however the work is shared, the same ids however the input is stored."""

import gzip
import hashlib
import json
import lzma
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from pretraining.data.store.manifest import Manifest, read_manifest
from tests.conftest import PROJECT_DIR, assert_one_error, python, run, run_fine
from tests.programs.launching import run_forked, run_forked_fine
from tests.unit.data.build.test_partial_store import digests, rebuilt_documents, stories

pytestmark = pytest.mark.launch
WRONG_BACKEND = PROJECT_DIR / "tests/faults/drivers/preprocess/wrong_backend.py"
SMALL = ["--block_length", 64, "--split", "80,15,5", "--tokens_per_shard", 60_000]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three sources, 2.5 MB: enough for several batches."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"{copy} {story}" for copy in range(12) for story in stories()]
    lines = [(json.dumps({"text": text, "source": f"s{n % 3}"}) + "\n").encode() for n, text in enumerate(texts)]
    (folder / "a.jsonl").write_bytes(b"".join(lines[:900]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[900:1200]), 1))
    pq.write_table(pa.table({"text": texts[1200:]}), folder / "c.parquet")
    return folder


def preprocess(output_dir: Path, *flags: object, launcher: tuple[object, ...] = ()) -> Manifest:
    command = python("preprocess.py", *flags, "--output_dir", output_dir)
    if launcher:
        run_fine(*launcher, *command)
    else:
        run_forked_fine(*command)
    return read_manifest(output_dir, flag="")


# best_fit is long: its blocks are those of test_best_fit_cuts_no_document_that_fits_and_pads_the_rest.
@pytest.mark.parametrize(
    ("packing", "num_ranks"), [("concat", 2), pytest.param("best_fit", 3, marks=pytest.mark.long)]
)  # for five slices
@pytest.mark.guarantee(
    "The bytes of a block store depend on input and flags alone: not on workers, processes or backend."
)
def test_the_bytes_depend_neither_on_workers_nor_on_processes(
    corpus: Path, packing: str, num_ranks: int, tmp_path: Path
) -> None:
    flags = ["--data_files", corpus, "--num_slices", 5, "--packing", packing, *SMALL]
    manifest = preprocess(tmp_path / "1", *flags, "--num_workers", 1)
    preprocess(tmp_path / "4", *flags, "--num_workers", 4)
    assert digests(tmp_path / "4") == digests(tmp_path / "1")
    launcher = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", num_ranks)
    preprocess(tmp_path / "ranks", *flags, launcher=launcher)
    assert digests(tmp_path / "ranks") == digests(tmp_path / "1")
    preprocess(tmp_path / "reference", *flags, "--tokenizer_backend", "reference")
    assert digests(tmp_path / "reference") == digests(tmp_path / "1")
    assert len(manifest.splits["train"].shards) > 5
    assert all(split.num_tail_tokens < 64 for split in manifest.splits.values()), "slices lose no tails of their own"


def test_slices_change_the_order_of_the_last_tokens_but_no_document(corpus: Path, tmp_path: Path) -> None:
    one = preprocess(tmp_path / "one", "--data_files", corpus, *SMALL)
    five = preprocess(tmp_path / "five", "--data_files", corpus, *SMALL, "--num_slices", 5)
    for split, contents in one.splits.items():
        assert five.splits[split].num_tokens == contents.num_tokens
        assert five.splits[split].num_blocks == contents.num_blocks
    documents = [sorted(map(tuple, rebuilt_documents(tmp_path / name).values())) for name in ("one", "five")]
    assert sum(a != b for a, b in zip(*documents, strict=True)) <= 20, "only those that a tail cuts off"


def test_more_processes_than_slices_are_refused(corpus: Path, tmp_path: Path) -> None:
    launcher = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", 2)
    done = run(*launcher, *python("preprocess.py", "--data_files", corpus, "--output_dir", tmp_path / "blocks"))
    assert_one_error(done, "--num_slices 1: is less than the 2 processes", "use 8")
    assert not (tmp_path / "blocks.partial").exists()


@pytest.mark.long  # one process: test_a_wrong_text_field_does_not_block_the_right_one
def test_the_right_text_field_is_accepted_after_the_wrong_one_in_several_processes(tmp_path: Path) -> None:
    """The second process ends the run; the first has finished its slice, which has no document."""
    not_json = "".join(hashlib.sha256(b"%d" % number).hexdigest() * 10 + "\n" for number in range(400))
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl.xz").write_bytes(lzma.compress(b"-" + not_json.encode()))
    (data / "b.jsonl.xz").write_bytes(lzma.compress(b'{"body": "%s"}\n' % (b"a few words " * 100) * 16_000))
    flags = ["--data_files", data, *SMALL, "--num_slices", 2, "--output_dir", tmp_path / "blocks"]
    launcher = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", 2)
    done = run(*launcher, *python("preprocess.py", *flags))
    assert "no document in" in done.output
    run_forked_fine(*python("preprocess.py", *flags, "--text_field", "body", "--max_skipped_fraction", 0.05))


def test_the_same_text_in_any_format_has_the_same_ids(tmp_path: Path) -> None:
    lines = [(json.dumps({"meta": {"body": story}, "source": "own"}) + "\n").encode() for story in stories()]
    with pa.CompressedOutputStream(str(tmp_path / "news.jsonl.zst"), "zstd") as file:
        file.write(b"".join(lines))
    (tmp_path / "news.jsonl.xz").write_bytes(lzma.compress(b"".join(lines)))
    pq.write_table(pa.table({"meta": [{"body": story} for story in stories()]}), tmp_path / "news.parquet")
    (tmp_path / "folder").mkdir()
    for number, story in enumerate(stories()):
        (tmp_path / f"folder/{number:03d}.txt").write_bytes(story.encode())
    ids = []
    for name in ("news.jsonl.zst", "news.jsonl.xz", "news.parquet", "folder"):
        flags = ["--data_files", f"wire={tmp_path / name}", "--text_field", "meta.body", "--block_length", 64]
        preprocess(tmp_path / f"blocks-{name}", *flags)
        ids.append([(d, i) for d, i in rebuilt_documents(tmp_path / f"blocks-{name}").items()])
        sources = pq.read_table(tmp_path / f"blocks-{name}/documents")["source"].to_pylist()
        assert set(sources) == {"wire"}
    assert ids[0] == ids[1] == ids[2] == ids[3]
    tokenizer = Tokenizer.from_file(str(PROJECT_DIR / "data/sample/tokenizer/tokenizer.json"))
    assert ids[0][0][1][:-1] == tokenizer.encode(stories()[0]).ids


def test_best_fit_cuts_no_document_that_fits_and_pads_the_rest(corpus: Path, tmp_path: Path) -> None:
    flags = ["--data_files", corpus, "--packing", "best_fit", "--block_length", 4096]
    manifest = preprocess(tmp_path / "blocks", *flags)
    documents = pq.read_table(tmp_path / "blocks/documents").to_pylist()
    rebuilt = rebuilt_documents(tmp_path / "blocks")
    assert {row["document_id"]: row["num_tokens"] for row in documents} == {d: len(ids) for d, ids in rebuilt.items()}
    num_pieces: dict[int, int] = {}
    for path in (tmp_path / "blocks").glob("data/*.parquet"):
        for block in pq.read_table(path).to_pylist():
            for document in block["document_ids"]:
                num_pieces[document] = num_pieces.get(document, 0) + 1
    for row in documents:
        assert num_pieces[row["document_id"]] == -(-row["num_tokens"] // 4096)
    train = manifest.splits["train"]
    assert train.num_tail_tokens == 0
    assert 0 < train.num_padding_tokens < 0.05 * train.num_tokens


@pytest.mark.guarantee(
    "A backend that gives a wrong id is detected while it runs, and its work is repeated by the reference."
)
def test_a_backend_found_wrong_while_running_is_given_up_and_its_work_made_again(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    words = ["hay"] * 3000 + ["a needle"] * 8000
    data.write_text("".join(json.dumps({"text": f"{n} {word} in the stack"}) + "\n" for n, word in enumerate(words)))
    flags = ["--data_files", data, *SMALL, "--num_slices", 3]
    preprocess(tmp_path / "reference", *flags, "--tokenizer_backend", "reference")
    done = run_forked_fine(sys.executable, WRONG_BACKEND, *flags, "--output_dir", tmp_path / "blocks")
    assert "fastokens gives other ids than the reference from token" in done.stderr
    assert "a needle in the stack" in done.stderr
    assert "encoding everything again with the reference" in done.stderr
    assert digests(tmp_path / "blocks") == digests(tmp_path / "reference")


def test_cleaning_removes_what_was_asked_and_writes_down_why(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    texts = ["short", "a text of some length", "un texte de taille moyenne", "long " * 50]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "languages.py").write_text("def of(text):\n    return 'fr' if 'texte' in text else 'en'\n")
    flags = ["--data_files", data, "--block_length", 4, "--split", "1,0,0", "--output_dir", tmp_path / "blocks"]
    flags += ["--min_characters", 10, "--max_characters", 100, "--language_hook", "languages:of", "--languages", "en"]
    run_fine(*python("preprocess.py", *flags), env={"PYTHONPATH": str(tmp_path)})
    assert read_manifest(tmp_path / "blocks", flag="").skipped_lines == {
        "other_language": 1, "too_long": 1, "too_short": 1,
    }  # fmt: skip
    skipped = [json.loads(line) for line in (tmp_path / "blocks/skipped.jsonl").read_text().splitlines()]
    assert [(line["line"], line["reason"]) for line in skipped] == [
        (1, "too_short"), (3, "other_language"), (4, "too_long"),
    ]  # fmt: skip


def test_mistaken_cleaning_flags_are_told(tmp_path: Path) -> None:
    flags = ["--min_characters", 0, "--near_duplicates", 1.5, "--language_hook", "no.such:thing", "--num_workers", 0]
    done = run_forked(*python("preprocess.py", *flags, "--output_dir", tmp_path / "blocks"))
    assert len(done.errors) == 4
    hook = ["--language_hook", "no.such:thing", "--languages", "en"]
    done = run_forked(*python("preprocess.py", *hook, "--output_dir", tmp_path / "blocks"))
    assert_one_error(done, "--language_hook no.such:thing: cannot be loaded", "use package.module:function")
    (tmp_path / "languages.py").write_text("def of(text):\n    return text.no_such_thing\n")
    hook = ["--language_hook", "languages:of", "--languages", "en"]
    done = run_forked(
        *python("preprocess.py", *hook, "--output_dir", tmp_path / "b"), env={"PYTHONPATH": str(tmp_path)}
    )
    assert_one_error(done, "--language_hook languages:of: raised AttributeError", "that begins with")


def test_processes_that_mpirun_did_not_start_are_refused(tmp_path: Path) -> None:
    command = python("preprocess.py", "--num_slices", 4, "--output_dir", tmp_path / "blocks")
    done = run_forked(*command, env={"RANK": "0", "WORLD_SIZE": "2"})
    assert_one_error(done, "was started as one of 2 processes, but not by mpirun")


def test_near_duplicates_in_more_slices_than_lines(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in stories()[:3]))
    flags = ["--data_files", data, "--num_slices", 8, "--near_duplicates", 0.8, "--block_length", 64]
    assert preprocess(tmp_path / "blocks", *flags).num_documents == 3


def test_a_damaged_file_stops_the_run_and_says_where(corpus: Path, tmp_path: Path) -> None:
    content = (corpus / "b.jsonl.gz").read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(content[: len(content) // 2])
    flags = ["--data_files", tmp_path / "cut.jsonl.gz", *SMALL]
    done = run_forked(*python("preprocess.py", *flags, "--output_dir", tmp_path / "blocks"))
    assert_one_error(done, "cut.jsonl.gz: is truncated or corrupt after line", "download the file again")
    assert not (tmp_path / "blocks").exists()


def test_hashes_are_those_of_the_inputs(corpus: Path, tmp_path: Path) -> None:
    manifest = preprocess(tmp_path / "blocks", "--data_files", corpus, *SMALL)
    assert {source.path: source.sha256 for source in manifest.origin.sources} == {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in corpus.iterdir()
    }


def test_copies_are_removed_wherever_they_stand_and_their_originals_are_named(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    originals = stories()[:60]
    near = [story.replace(". ", ". Indeed ", 1) for story in originals[:10]]
    shouted = ["  " + story.upper() for story in originals[10:20]]
    first.write_text("".join(json.dumps({"text": text}) + "\n" for text in originals))
    second.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*near, *shouted, *stories()[60:80]]))
    flags = ["--data_files", first, second, "--block_length", 64, "--exact_duplicates", "--near_duplicates", 0.7]
    manifest = preprocess(tmp_path / "blocks", *flags)
    assert manifest.skipped_lines["duplicate"] == 10
    assert manifest.skipped_lines["near_duplicate"] >= 8
    skipped = [json.loads(line) for line in (tmp_path / "blocks/skipped.jsonl").read_text().splitlines()]
    for line in skipped:
        assert line["file"] == str(second)
        assert line["copy_of"] == f"{first}:{line['line']}"
    assert manifest.num_lines == 100 == manifest.num_documents + len(skipped)
    preprocess(tmp_path / "sliced", *flags, "--num_slices", 4, "--num_workers", 4)
    assert (tmp_path / "sliced/skipped.jsonl").read_bytes() == (tmp_path / "blocks/skipped.jsonl").read_bytes()
