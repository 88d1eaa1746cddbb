"""What the tests of faults share."""

from pathlib import Path

import pytest

from tests.conftest import python
from tests.programs.launching import run_forked_fine


@pytest.fixture(scope="session")
def training_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample corpus without blocks for evaluations, which take a seventh of a run of six steps."""
    store = tmp_path_factory.mktemp("training") / "blocks"
    run_forked_fine(*python("preprocess.py", "--block_length", 64, "--split", "1,0,0", "--output_dir", store))
    return store
