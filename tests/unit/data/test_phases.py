"""All block stores of all phases are opened at the start, as one mixture with one name per source."""

import json
import shutil
from pathlib import Path

import pytest

from pretraining.cli.arguments.phases import PhaseArguments
from pretraining.cli.arguments.pretrain import DataArguments
from pretraining.data.mixture import BlockStore, load_mixture
from pretraining.data.phases import load_data
from pretraining.errors import UserError


@pytest.fixture(scope="module")
def other_store(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("other") / "blocks"
    shutil.copytree(sample_store, store)
    return store


def phases(*datasets: list[str], revision: str | None = None) -> DataArguments:
    shares = [0.75, 0.25] if len(datasets) == 2 else [1.0]
    named = enumerate(zip(datasets, shares, strict=True))
    made = [PhaseArguments(f"phase{number}", words, share) for number, (words, share) in named]
    return DataArguments(phases=made, dataset_revision=revision)


def problems(flags: DataArguments) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_data(flags)
    return list(caught.value.problems)


def test_the_mixture_has_every_store_once(sample_store: Path, other_store: Path) -> None:
    first, second = [f"news={sample_store}:3", f"wiki={other_store}:1"], [f"wiki={other_store}"]
    found = load_data(phases(first, second))
    assert [(part.source, part.weight) for part in found.parts] == [
        ("news", pytest.approx(0.5625)),
        ("wiki", pytest.approx(0.4375)),
    ]
    assert [[part.source for part in phase.parts] for phase in found.phases] == [["news", "wiki"], ["wiki"]]
    assert found.phases[1].parts[0].store is found.parts[1].store
    assert load_data(phases([str(sample_store)], [str(sample_store)])).parts[0].source is None
    assert load_data(DataArguments([str(sample_store)])).phases == ()


def test_a_later_store_that_is_missing_or_does_not_fit(sample_store: Path, other_store: Path, tmp_path: Path) -> None:
    news = f"news={sample_store}"
    (found,) = problems(phases([news], [f"wiki={tmp_path}/nothing"]))
    assert found.startswith("--phases: phase1: dataset ")
    assert "nothing: not a block store" in found
    changed = tmp_path / "changed"
    shutil.copytree(other_store, changed)
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["origin"]["tokenizer"]["sha256"] = "0" * 64
    (changed / "manifest.json").write_text(json.dumps(manifest))
    (found,) = problems(phases([news], [f"wiki={changed}"]))
    assert found.startswith("--phases: phase1: dataset ")
    assert "has the tokenizer of sha256 000000000000" in found
    (found,) = problems(phases([news], ["synthetic"]))
    assert found == "--phases: phase1: dataset synthetic: random ids cannot be read in a phase; use a block store"
    (found,) = problems(phases([news], [f"{news}:1", f"wiki={other_store}"]))
    assert found.startswith(f"--phases: phase1: dataset wiki={other_store}: with several, each needs a weight; use")


def test_a_folder_is_one_store_however_it_is_written(sample_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sample_store.parent)
    found = load_data(phases([sample_store.name], [f"./{sample_store.name}"]))
    assert len(found.parts) == 1


def test_a_revision_is_that_of_one_data_set(sample_store: Path, other_store: Path) -> None:
    message = "--dataset_revision v1: works with one --dataset only; remove it, or download the data sets first"
    news, wiki = f"news={sample_store}", f"wiki={other_store}"
    assert problems(phases([f"{news}:1", f"{wiki}:1"], [wiki], revision="v1")) == [message]
    opened: dict[str, BlockStore] = {}
    load_mixture([news], revision=None, opened=opened)
    with pytest.raises(UserError, match=f"^{message}$"):  # not that of each phase
        load_mixture([wiki], revision="v1", opened=opened)
    assert load_mixture([news], revision="v1", opened=opened).first is opened[str(sample_store)]


def test_a_source_has_one_name(sample_store: Path, other_store: Path) -> None:
    news = f"news={sample_store}"
    assert problems(phases([news], [str(other_store)])) == [
        f"--phases: phase1: dataset {other_store} needs a name; use NAME={other_store}"
    ]
    assert problems(phases([news], [f"news={other_store}"])) == [
        f"--phases: phase1: news is {other_store}, before it was {sample_store}; rename it"
    ]
    assert problems(phases([news], [f"wiki={sample_store}"])) == [
        f"--phases: phase1: {sample_store} is wiki, before it was news; rename it"
    ]
    for datasets in ([news], [str(sample_store)]), ([str(sample_store)], [news]):
        assert problems(phases(*datasets)) == [
            f"--phases: phase1: {sample_store} has a name in one phase only; use {news} in each"
        ]
