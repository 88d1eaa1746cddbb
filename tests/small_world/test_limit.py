"""The entropy, the probability of a text and the drawing of stories are one and the same distribution."""

import itertools
import math
import random
import statistics
from collections import Counter

import pytest

from small_world import WORLD
from small_world.grammar import NOTHING, Form, World, fill_templates
from small_world.limit import limit_of, limits_by_source
from small_world.reading import END, next_bytes, readings, story_readings
from tests.small_world.worlds import NUM_COPIES, tiny_world


def all_stories(world: World) -> dict[str, float]:
    """Every story with its probability, byte for byte by what may follow."""
    found, begun = {}, [(b"", 1.0)]
    while begun:
        text, probability = begun.pop()
        for byte, share in next_bytes(world, text).items():
            if byte == END:
                found[text.decode()] = probability * share
            else:
                begun.append((text + bytes([byte]), probability * share))
    return found


def test_the_limit_is_the_entropy_of_all_texts() -> None:
    world = tiny_world()
    stories = all_stories(world)
    assert len(stories) == 3 * 2 * 2 + 2 * 2 * 2 + 1
    assert sum(stories.values()) == pytest.approx(1)
    limit = limit_of(world)
    assert limit.bits == pytest.approx(-sum(p * math.log2(p) for p in stories.values()), rel=1e-12)
    assert limit.num_bytes == pytest.approx(sum(p * len(text.encode()) for text, p in stories.items()), rel=1e-12)
    for source, found in limits_by_source(world).items():
        mine = {text: p for text, p in stories.items() if story_readings(world, text)[0].source == source}
        assert found.bits == pytest.approx(-sum(p * math.log2(p) for p in mine.values()) * 2, rel=1e-12)
        assert found.num_bytes == pytest.approx(sum(p * len(text.encode()) for text, p in mine.items()) * 2, rel=1e-12)


def test_the_probability_of_a_text_is_how_often_it_is_drawn() -> None:
    world, generator = tiny_world(), random.Random(0)
    stories = all_stories(world)
    num_drawn = 20_000
    drawn = Counter(world.draw(generator) for _ in range(num_drawn))
    assert {text for _, text in drawn} == set(stories)
    for (source, text), count in drawn.items():
        (reading,) = story_readings(world, text)
        assert reading.source == source
        assert reading.probability == pytest.approx(stories[text], rel=1e-12)
        assert stories[text] * NUM_COPIES == pytest.approx(round(stories[text] * NUM_COPIES))
        spread = math.sqrt(num_drawn * stories[text] * (1 - stories[text]))
        assert abs(count - num_drawn * stories[text]) < 5 * spread, text


def test_every_story_is_read_in_one_way() -> None:
    """Of every form every choice of templates; otherwise the entropy of the draws would be more than the texts'."""
    generator = random.Random(1)
    num_told = 0
    for source, form, _ in WORLD.forms():
        for templates in itertools.product(*form.parts):
            text = fill_templates(form, templates, generator)
            found = story_readings(WORLD, text)
            assert [reading.source for reading in found] == [source], text
            num_told += 1
    assert num_told > 500


def test_stories_that_can_be_told_in_two_ways_are_noticed() -> None:
    form = Form(facts={}, headlines=["Rain"], sentences=[["It rains."], [NOTHING, "Still."], [NOTHING, "Still."]])
    world = World({"weather": [form]})
    assert len(story_readings(world, "Rain\n\nIt rains. Still.")) == 2
    assert limit_of(world).bits == 2
    assert sum(-p * math.log2(p) for p in all_stories(world).values()) == 1.5


def test_the_information_of_drawn_stories_is_on_average_the_limit() -> None:
    generator = random.Random(2)
    limits = limits_by_source(WORLD)
    found: dict[str, list[float]] = {source: [] for source in limits}
    num_bytes = Counter()
    for _ in range(1500):
        source, text = WORLD.draw(generator)
        (reading,) = story_readings(WORLD, text)
        found[source].append(-math.log2(reading.probability))
        num_bytes[source] += len(text.encode())
    for source, bits in found.items():
        error = statistics.stdev(bits) / math.sqrt(len(bits))
        assert abs(statistics.fmean(bits) - limits[source].bits) < 4 * error, source
        assert num_bytes[source] / len(bits) == pytest.approx(limits[source].num_bytes, rel=0.05)


def test_a_text_that_is_no_story_has_no_reading() -> None:
    text = WORLD.draw(random.Random(3))[1]
    assert story_readings(WORLD, text[:-1]) == []
    assert story_readings(WORLD, text + " ") == []
    assert list(readings(WORLD, b"Nothing of this world")) == []
    assert next_bytes(WORLD, text.encode() + b"?") == {}
