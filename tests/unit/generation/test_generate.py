"""How much one start of generate.py may write."""

from typing import Any

import pytest

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.errors import UserError
from pretraining.generation.generate import make_requests


def test_more_completions_than_memory_holds_are_refused() -> None:
    unused: Any = None
    with pytest.raises(UserError, match=r"--num_samples 200000: of 6 prompts makes more than 1,000,000 completions"):
        make_requests(["The council"] * 6, unused, unused, GenerateArguments(num_samples=200_000))
