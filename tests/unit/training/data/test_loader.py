"""Several block stores with their shares: what --dataset may say, and that the stores fit together."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from pretraining.data.mixture import load_mixture
from pretraining.errors import UserError
from pretraining.planning.global_batch import GlobalBatch
from pretraining.training.data.batch import collate_targets
from pretraining.training.data.dataset import BlockFields
from pretraining.training.data.loader import BlockLoader, BlockStream
from pretraining.training.data.order import make_order
from pretraining.training.data.phases import RunOrder
from pretraining.training.data.splits import TrainingData, open_training_data
from tests.conftest import python, run_fine
from tests.programs.launching import run_forked_fine


@pytest.fixture(scope="module")
def second_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("second") / "blocks"
    words = ["--block_length", 64, "--split", "90,5,5", "--max_characters", 1200, "--output_dir", store]
    run_forked_fine(*python("preprocess.py", *words))
    return store


def opened(*datasets: str) -> TrainingData:
    mixture = load_mixture(datasets, revision=None)
    return open_training_data(mixture, BlockStream(RunOrder.of(make_order(mixture, seed=42))), BlockFields())


def test_shares_and_names_are_read(sample_store: Path, second_store: Path) -> None:
    mixture = load_mixture([f"news={sample_store}:0.7", f"wiki={second_store}:.3"], revision=None)
    assert [(part.source, part.weight, part.store.folder) for part in mixture.parts] == [
        ("news", 0.7, sample_store),
        ("wiki", 0.3, second_store),
    ]
    assert make_order(mixture, seed=1).blocks_per_window == (700, 300)
    alone = load_mixture([str(sample_store)], revision=None)
    assert [(part.source, part.weight) for part in alone.parts] == [(None, 1.0)]
    assert load_mixture([f"news={sample_store}"], revision=None).parts[0].source == "news"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["{a}:0.7", "b={b}:0.3"], "a weight needs the name of its source; use NAME={a}:WEIGHT"),
        (["a={a}", "b={b}:0.3"], "with several, each needs a weight; use a={a}:WEIGHT"),
        (["a={a}:many", "b={b}:0.3"], "the weight 'many' is not a number in (0, 1e9]; use a={a}:0.5"),
        (["a={a}:0", "b={b}:0.3"], "the weight '0' is not a number in (0, 1e9]"),
        (["a={a}:nan", "b={b}:0.3"], "the weight 'nan' is not a number in (0, 1e9]"),
        (["a={a}:0.5", "a={b}:0.5"], "two sources are called a"),
        (["a={a}:0.5", "b=nowhere:0.5"], "--dataset nowhere: not a block store"),
        (["news:0.7", "b={b}:0.3"], "a weight needs the name of its source; use NAME=news:WEIGHT"),
    ],
)
def test_shares_that_are_unclear_are_refused(
    texts: list[str], expected: str, sample_store: Path, second_store: Path
) -> None:
    stores = {"a": sample_store, "b": second_store}
    with pytest.raises(UserError) as caught:
        load_mixture([text.format(**stores) for text in texts], revision=None)
    assert expected.format(**stores) in str(caught.value)


def test_a_share_below_one_block_in_a_thousand_is_refused(sample_store: Path, second_store: Path) -> None:
    mixture = load_mixture([f"news={sample_store}:1", f"wiki={second_store}:0.0001"], revision=None)
    with pytest.raises(UserError, match=r"--dataset wiki: its share of 0\.0001 is less than one block of 1,000"):
        make_order(mixture, seed=1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda origin: origin.update(block_length=32), "has blocks of 32 tokens, "),
        (lambda origin: origin["tokenizer"].update(sha256="0" * 64), "has the tokenizer of sha256 000000000000, "),
        (lambda origin: origin["token_rules"].update(bos_token_id=1), "has the token rules "),
    ],
)
def test_stores_that_do_not_fit_together_are_refused(sample_store: Path, tmp_path: Path, change, expected: str) -> None:
    other = tmp_path / "other"
    shutil.copytree(sample_store, other)
    manifest = json.loads((other / "manifest.json").read_text())
    change(manifest["origin"])
    for split in manifest["splits"].values():  # counts that add up, so that the manifest is not the mistake
        split["num_tail_tokens"] = split["num_tokens"] - split["num_blocks"] * manifest["origin"]["block_length"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError) as caught:
        load_mixture([f"a={sample_store}:1", f"b={other}:1"], revision=None)
    assert f"--dataset {other}: {expected}" in str(caught.value)
    assert "preprocess one of them again with the flags of the other" in str(caught.value)


def test_every_item_is_of_its_share_and_says_so(sample_store: Path, second_store: Path) -> None:
    data = opened(f"news={sample_store}:0.8", f"wiki={second_store}:0.2")
    assert data.sources == ("news", "wiki")
    ids = data.stream.block_ids(0, 1000)
    sources = [int(data.train[int(number)]["sources"][0]) for number in ids]
    assert np.bincount(sources).tolist() == [800, 200]
    assert {data.train.locate(int(number))[0] for number in ids} == {0, 1}
    assert len(data.validation or []) == sum(data.mixture.num_blocks("validation"))


@pytest.mark.parametrize(
    ("micro_batch", "num_processes", "num_workers"), [(8, 1, 0), (1, 1, 0), (2, 2, 0), (1, 4, 0), (8, 1, 2), (2, 2, 2)]
)
@pytest.mark.guarantee("A step has the same blocks for any number of processes, workers and micro steps.")
def test_a_step_has_the_same_blocks_however_it_is_divided(
    sample_store: Path, second_store: Path, micro_batch: int, num_processes: int, num_workers: int
) -> None:
    data = opened(f"news={sample_store}:0.8", f"wiki={second_store}:0.2")
    batch = GlobalBatch(64, micro_batch, 8 // micro_batch // num_processes, num_processes)
    loaders = [
        BlockLoader(
            data.train,
            data.stream,
            batch,
            collate_fn=collate_targets,
            group=rank,
            num_blocks=88,
            num_workers=num_workers,
            pin_memory=False,
        )
        for rank in range(num_processes)
    ]
    for loader in loaders:
        loader.move_to(64)
    readers = [iter(loader) for loader in loaders]
    for step in range(8, 11):
        rows = [next(reader)["input_ids"] for _ in range(batch.gradient_accumulation_steps) for reader in readers]
        expected = [data.train[int(number)]["input_ids"] for number in data.stream.block_ids(step * 8, 8)]
        assert np.array_equal(np.concatenate(rows), np.stack(expected))
    assert [next(reader, None) for reader in readers] == [None] * num_processes, "the run ends after 88 blocks"


def test_moving_a_loader_drops_what_was_read_ahead(sample_store: Path) -> None:
    data = opened(str(sample_store))
    batch = GlobalBatch(64, 2, 1, 1)
    options = {"collate_fn": collate_targets, "num_workers": 2}
    loader = BlockLoader(data.train, data.stream, batch, group=0, num_blocks=100, **options)
    reader = iter(loader)
    first = [next(reader)["input_ids"] for _ in range(4)]
    loader.move_to(2)
    assert np.array_equal(next(reader)["input_ids"], first[1])
    data.stream.skip(4, 2)
    loader.move_to(4)
    assert np.array_equal(next(reader)["input_ids"], first[3])


def test_memory_stays_the_same_as_workers_read_on(sample_store: Path) -> None:
    """Pages of blocks are mapped files; what would grow are Python objects, whose counts of references are written.

    In a process of its own: workers write to pages that they share with whatever the tests before this one left.
    """
    done = run_fine(sys.executable, "-m", "tests.unit.training.data.reading_run", sample_store, 2_000, 7_000)
    first, last = json.loads(done.stdout)
    assert last - first < 2_500_000, (first, last)
