"""The page of faults counts what the tests say that they did, and knows each of their files."""

from xml.etree import ElementTree

from benchmarks.faults import PLACES, TESTS, _case, _row
from tests.conftest import PROJECT_DIR

KILLS = """
<testcase classname="tests.faults.test_kills" name="fp32"><properties>
<property name="lost_steps" value="2" /><property name="lost_steps" value="0" /><property name="killed" value="2" />
</properties></testcase>
"""


def test_kills_and_what_they_cost_are_added_up() -> None:
    failed = '<testcase classname="tests.faults.test_hangs" name="hang"><failure message="no" /></testcase>'
    inputs = '<testcase><properties><property name="tried" value="1600" /></properties></testcase>'
    cases = [_case(ElementTree.fromstring(text)) for text in (KILLS, failed, inputs)]
    assert [case.tried for case in cases] == [2, 1, 1600], "one, where a test says nothing"
    assert _row(cases) == ["1,603", "2", "1.0 (2)", "1"]


def test_each_file_is_told_by_what_it_breaks() -> None:
    places = [PROJECT_DIR / place for place in PLACES]
    names = [path.name for place in places for path in ([place] if place.is_file() else place.glob("test_*.py"))]
    assert set(names) == TESTS.keys()
