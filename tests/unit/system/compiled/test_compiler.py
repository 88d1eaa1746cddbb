"""What the compiler takes and what it refuses."""

import pytest

from pretraining.system.compiled.cache import load_compiled
from pretraining.system.compiled.unit import CompiledError, CompiledUnit
from tests.unit.system.compiled.conftest import UNIT


def test_functions_that_need_python_are_refused() -> None:
    with pytest.raises(CompiledError, match=r"the compiler ended with status 1: .*need Python"):
        load_compiled(CompiledUnit(UNIT.modules, ("needs_python",)))


def test_a_type_without_a_translation_is_a_reason() -> None:
    with pytest.raises(CompiledError, match=r"the compiler ended with status 1: .*complex"):
        load_compiled(CompiledUnit(UNIT.modules, ("takes_a_complex_number",)))
