"""A model that knows the grammar's probabilities reaches the limit exactly, through all the code that evaluates."""

import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pretraining.data.input.find import find_inputs
from pretraining.data.mixture import Mixture, load_mixture
from pretraining.errors import UserError
from pretraining.evaluation.blocks import evaluate_split
from pretraining.evaluation.held_out import evaluate_files
from pretraining.evaluation.known_limit import document_texts, gap_of, predict_documents
from pretraining.training.data.dataset import BlockFields
from small_world import WORLD
from small_world.grammar import World
from small_world.limit import limit_of, limits_by_source
from small_world.reading import story_readings
from tests.conftest import PROJECT_DIR
from tests.small_world.test_limit import all_stories
from tests.small_world.worlds import NUM_COPIES, tiny_world
from tests.unit.evaluation.exact_model import BOS, EOS, ExactModel, byte_tokenizer, make_store, write_stories

EXACTLY = 1e-6  # of the figure, by a loss in fp32


def bits_of(world: World, text: str) -> tuple[str, float]:
    """The source of a story and its information."""
    (reading,) = story_readings(world, text)
    return reading.source, -math.log2(reading.probability)


class Known(SimpleNamespace):
    """Stories of a world in a file and in blocks, and the model that knows them."""

    world: World
    stories: list[tuple[str, str]]
    path: Path
    mixture: Mixture
    model: ExactModel


def known(folder: Path, world: World, stories: list[tuple[str, str]]) -> Known:
    path = write_stories(folder / "stories.jsonl", stories)
    tokenizer = make_store(folder, path, byte_tokenizer(folder / "tokenizer"))
    mixture = load_mixture([str(folder / "blocks")], revision=None)
    model = ExactModel(world, tokenizer)
    return Known(world=world, stories=stories, path=path, mixture=mixture, tokenizer=tokenizer, model=model)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """Stories of the whole world."""
    generator = random.Random(5)
    return known(tmp_path_factory.mktemp("large"), WORLD, [WORLD.draw(generator) for _ in range(12)])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """Every story of the tiny world, as often as it is expected: its limit is that of the world itself."""
    world = tiny_world()
    stories = [
        (bits_of(world, text)[0], text) for text, p in all_stories(world).items() for _ in range(round(p * NUM_COPIES))
    ]
    assert len(stories) == NUM_COPIES
    return known(tmp_path_factory.mktemp("tiny"), world, stories)


def figures_of_every_way(known: Known) -> list[tuple[str, dict[str, float], dict[str, dict[str, float]]]]:
    """What tools.evaluate tells of the documents, and what a run logs of the blocks."""
    documents = evaluate_files(known.model, known.tokenizer, find_inputs([str(known.path)]), batch_tokens=2000)
    blocks = [
        evaluate_split(known.model, known.tokenizer, known.mixture, "validation", fields=fields, batch_tokens=2048)
        for fields in (BlockFields(), BlockFields(document_masking=True))
    ]
    return [(name, found.total, found.sources) for name, found in zip("dbi", [documents, *blocks], strict=True)]


@pytest.mark.parametrize("which", ["large", "tiny"])
def test_the_evaluation_of_the_true_probabilities_is_the_information_of_the_stories(
    which: str, request: pytest.FixtureRequest
) -> None:
    known: Known = request.getfixturevalue(which)
    bits, num_bytes = {}, {}
    for source, text in known.stories:
        bits[source] = bits.get(source, 0) + bits_of(known.world, text)[1]
        num_bytes[source] = num_bytes.get(source, 0) + len(text.encode())
    for way, total, sources in figures_of_every_way(known):
        expected = sum(bits.values()) / sum(num_bytes.values())
        assert total["bits_per_byte"] == pytest.approx(expected, rel=EXACTLY), way
        assert sources.keys() == bits.keys()
        for source, figures in sources.items():
            assert figures["bits_per_byte"] == pytest.approx(bits[source] / num_bytes[source], rel=EXACTLY), way
            assert figures["loss"] * figures["num_tokens"] == pytest.approx(bits[source] * math.log(2), rel=EXACTLY)


def test_over_all_stories_of_a_world_it_is_the_limit(tiny: Known) -> None:
    limits = limits_by_source(tiny.world)
    for _, total, sources in figures_of_every_way(tiny):
        assert total["bits_per_byte"] == pytest.approx(limit_of(tiny.world).bits_per_byte, rel=EXACTLY)
        for source, figures in sources.items():
            assert figures["bits_per_byte"] == pytest.approx(limits[source].bits_per_byte, rel=EXACTLY)


def predicted(known: Known, model: torch.nn.Module) -> list:
    return predict_documents(
        model, known.tokenizer, known.mixture, "validation", true_bits=lambda text: bits_of(known.world, text)
    )


def test_each_story_has_its_own_information(large: Known) -> None:
    texts = document_texts(large.mixture, "validation", large.tokenizer)
    assert sorted(texts) == sorted(text for _, text in large.stories)
    found = predicted(large, large.model)
    assert [(one.source, one.num_bytes) for one in found] == [
        (bits_of(WORLD, text)[0], len(text.encode())) for text in texts
    ]
    for one in found:
        assert one.model_bits == pytest.approx(one.limit_bits, rel=EXACTLY)
    gap = gap_of(found)
    assert gap.above == pytest.approx(0, abs=EXACTLY)
    assert not gap.is_below


class WithTable(torch.nn.Module):
    """Knows some stories by heart, as a model that was trained on what it is evaluated on, and otherwise the truth."""

    def __init__(self, exact: ExactModel, stories: list[str]) -> None:
        super().__init__()
        self.config, self.device = exact.config, exact.device
        self._exact, self._stories = exact, [story.encode() for story in stories]

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        logits = self._exact(input_ids).logits
        for row, ids in enumerate(input_ids.tolist()):
            text = bytes(self._exact._byte_of[number] for number in ids if number not in (BOS, EOS) and number > 2)
            if any(text.startswith(story) for story in self._stories):
                logits[row, :-1] = logits[row, :-1].scatter(1, input_ids[row, 1:, None], 8.0)
        return SimpleNamespace(logits=logits)


def test_a_model_below_the_limit_has_seen_the_answers(large: Known) -> None:
    texts = [text for _, text in large.stories]
    assert gap_of(predicted(large, WithTable(large.model, texts))).is_below
    some = gap_of(predicted(large, WithTable(large.model, texts[:3])))
    assert some.above < -0.05
    assert not some.is_below, "three stories of 25 may be chance"


def test_a_model_that_knows_less_is_above_the_limit(large: Known) -> None:
    class Unsure(WithTable):
        def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
            return SimpleNamespace(logits=self._exact(input_ids).logits.clamp(min=-8.0))

    gap = gap_of(predicted(large, Unsure(large.model, [])))
    assert gap.above > 0.02
    assert not gap.is_below


def test_stories_that_blocks_cut_are_put_together(large: Known, tmp_path: Path) -> None:
    path = write_stories(tmp_path / "stories.jsonl", large.stories)
    flags = ["--packing", "concat", "--block_length", "64"]
    make_store(tmp_path, path, byte_tokenizer(tmp_path / "tokenizer"), *flags)
    mixture = load_mixture([str(tmp_path / "blocks")], revision=None)
    texts = document_texts(mixture, "validation", large.tokenizer)
    assert texts == [text for _, text in large.stories][: len(texts)]
    assert len(large.stories) - len(texts) <= 1, "but the one whose end is in the tail"


def test_blocks_of_another_kind_are_refused(large: Known, tmp_path: Path) -> None:
    path = write_stories(tmp_path / "stories.jsonl", large.stories)
    make_store(tmp_path, path, byte_tokenizer(tmp_path / "tokenizer"), "--add_bos", "false")
    mixture = load_mixture([str(tmp_path / "blocks")], revision=None)
    other = PreTrainedTokenizerFast.from_pretrained(PROJECT_DIR / "data/sample/tokenizer")
    with pytest.raises(UserError, match=r"was made with another tokenizer than the model's; rerun preprocess\.py"):
        predict_documents(large.model, other, large.mixture, "validation", true_bits=lambda _: ("", 0.0))
    with pytest.raises(UserError, match=r"was made without --add_bos; rerun preprocess\.py with it"):
        document_texts(mixture, "validation", large.tokenizer)
    with pytest.raises(UserError, match="--split train: has no block"):
        document_texts(large.mixture, "train", large.tokenizer)
