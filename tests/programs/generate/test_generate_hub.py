"""generate.py on models of the Hub: private ones, revisions, and what of others is never opened."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import assert_nowhere, assert_one_error, python
from tests.fakes.exported import export_random_model
from tests.fakes.hub import LocalHub
from tests.fakes.hub.server import ALICE, BOB
from tests.programs.launching import run_forked, run_forked_fine

pytestmark = pytest.mark.launch
SAMPLED = python("generate.py", "--max_new_tokens", 10, "--prompt", "The council")


@pytest.fixture(scope="module")
def model_dir(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_random_model(tmp_path_factory.mktemp("generate") / "model", sample_store)


def test_a_private_model_of_a_revision_and_a_tokenizer_for_blocks(
    hub: LocalHub, model_dir: Path, tmp_path: Path
) -> None:
    hub.storage.serve_folder("model", "alice/tiny", model_dir, private=True)
    commit = hub.storage.repositories["model", "alice/tiny"].head
    machine = hub.env(tmp_path / "machine", ALICE)
    done = run_forked_fine(*SAMPLED, "--model", "alice/tiny", "--revision", commit, env=machine)
    assert done.stdout == run_forked_fine(*SAMPLED, "--model", model_dir).stdout
    assert f"model: alice/tiny at {commit[:12]}" in done.stderr
    assert_nowhere(ALICE, done, tmp_path / "machine")
    store = tmp_path / "blocks"
    run_forked_fine(*python("preprocess.py", "--tokenizer", "alice/tiny", "--output_dir", store), env=machine)
    assert json.loads((store / "manifest.json").read_text())["origin"]["tokenizer"]["name"] == "alice/tiny"

    done = run_forked(*SAMPLED, "--model", "alice/tiny", env=hub.env(tmp_path / "other", BOB))
    assert_one_error(done, "--model alice/tiny: cannot be loaded", "HF_TOKEN")


@pytest.mark.guarantee("Pickles and code of others are not even downloaded.")
def test_pickles_and_code_of_others_are_not_even_downloaded(hub: LocalHub, model_dir: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(model_dir, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    own_code = shutil.copytree(model_dir, tmp_path / "own_code")
    config = json.loads((own_code / "config.json").read_text()) | {"auto_map": {"AutoConfig": "evil.Config"}}
    (own_code / "config.json").write_text(json.dumps(config))
    (own_code / "evil.py").write_text("open('was here', 'w')")
    for name in ("pickled", "own_code"):
        hub.storage.serve_folder("model", f"bob/{name}", tmp_path / name, private=False)
    env = hub.env(tmp_path / "machine", None)
    done = run_forked(*SAMPLED, "--model", "bob/pickled", env=env)
    assert_one_error(done, "--model bob/pickled: has pickled weights (pytorch_model.bin)", "can run code")
    done = run_forked(*SAMPLED, "--model", "bob/own_code", env=env)
    assert_one_error(done, "--model bob/own_code: config.json: asks for custom code (auto_map)")
    names = {path.name for path in (tmp_path / "machine").rglob("*")}
    assert not names & {"pytorch_model.bin", "evil.py"}
