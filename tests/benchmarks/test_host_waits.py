"""Within a micro step the host waits for nothing that the GPU has not done long ago; the benchmark would notice."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.host_waits import MODELS, full_fields, launch, make_blocks, scaled_config, small_fields, train
from pretraining.planning.flops import layer_parameters
from pretraining.training.model.fields import DEFAULTS
from tests.conftest import PROJECT_DIR
from tests.programs.launching import SEARCH_PATH, run_preloaded

pytestmark = pytest.mark.launch
# As DeepSpeed and the Trainer would have it: small messages, little ahead, and a timer.
OLD_SIZES = {"reduce_bucket_size": 5e7, "stage3_prefetch_bucket_size": 2e8, "stage3_max_live_parameters": 1e9}


def start_forked(num_processes: int, words: Sequence[str]) -> None:
    """In forks, without a launcher, which takes most of the time."""
    done = run_preloaded(num_processes if num_processes > 1 else 0, words, {"PYTHONPATH": SEARCH_PATH})
    assert done.returncode == 0, done.output[-6000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host_waits")
    make_blocks(folder)
    return folder


def changed_config(folder: Path, *, zero: dict[str, Any], is_timed: bool) -> str:
    config = json.loads((PROJECT_DIR / "ds_config.json").read_text())
    config["zero_optimization"] |= zero
    config["timers"]["throughput"]["enabled"] = is_timed
    path = folder / "changed.json"
    path.write_text(json.dumps(config))
    return str(path)


# Other models are long, and start as in the benchmark; in make test the cases of llama2_7b hold the same promise.
@pytest.mark.parametrize(
    ("model", "num_processes"),
    [
        pytest.param(model, number, marks=[] if model == "llama2_7b" else pytest.mark.long)
        for model in MODELS
        for number in (1, 2)
    ],
)
@pytest.mark.guarantee(
    "With the optimizer on the GPU, the host waits for nothing nearer than two layers back within a micro step."
)
def test_the_host_waits_for_nothing(model: str, num_processes: int, folder: Path) -> None:
    start = start_forked if model == "llama2_7b" else launch
    run = train(model, num_processes, str(PROJECT_DIR / "ds_config.json"), folder, start=start)
    assert list(run.problems()) == []
    if num_processes == 1:
        assert run.found["counts"] == {}
        assert run.bytes_per_parameter == 6
        assert run.found["collectives"] == 0
    else:
        assert run.found["counts"].keys() == {"event wait", "wait for a gather"}
        assert run.found["collectives"] <= 8, "one message per layer, and those of the embeddings"


def test_a_timer_is_noticed(folder: Path, tmp_path: Path) -> None:
    path = changed_config(tmp_path, zero={}, is_timed=True)
    (problem, *_) = train("llama2_7b", 1, path, folder, start=start_forked).problems()
    assert "device synchronization in start" in problem


# Long: test_a_timer_is_noticed holds that what the host waits for is a problem.
@pytest.mark.long
def test_small_messages_and_a_timer_are_noticed(folder: Path, tmp_path: Path) -> None:
    path = changed_config(tmp_path, zero=OLD_SIZES, is_timed=True)
    run = train("llama2_7b", 2, path, folder, start=start_forked)
    problems = "\n".join(run.problems())
    assert "device synchronization in start" in problems
    assert "event waits 0 layers back; raise reduce_bucket_size to one layer" in problems
    assert "weights gathered late; raise stage3_prefetch_bucket_size" in problems


# Long: a variant of test_the_host_waits_for_nothing.
@pytest.mark.long
def test_with_an_offloaded_optimizer_no_wait_for_gradients_is_nearer(folder: Path, tmp_path: Path) -> None:
    """It reads all gradients of a micro step on the host, which waits for them at the end of each: a stream's wait."""
    (tmp_path / "blocks").symlink_to(folder / "blocks")
    config = str(PROJECT_DIR / "ds_config_offload_optimizer.json")
    run = train("llama2_7b", 1, config, tmp_path, start=start_forked)
    assert not any("event waits" in problem for problem in run.problems())
    assert run.found["counts"]["stream synchronization"] == 1


@pytest.mark.parametrize("model", MODELS)
def test_the_small_models_have_the_proportions_of_the_large_ones(model: str) -> None:
    full, small = full_fields(model), small_fields(model)
    for width in ("hidden_size", "intermediate_size", "vocab_size"):
        assert small[width] == full[width] // 64
    assert small["num_attention_heads"] * small["head_dim"] == small["hidden_size"]
    keys, small_keys = (fields["num_key_value_heads"] * fields["head_dim"] for fields in (full, small))
    assert small_keys == keys // 64
    layer = layer_parameters(SimpleNamespace(**DEFAULTS | small))
    zero = scaled_config(str(PROJECT_DIR / "ds_config.json"), model)["zero_optimization"]
    if model == "tinyllama_1b":  # its layers are smaller than the smallest message
        assert zero["reduce_bucket_size"] > layer
    else:
        assert zero["reduce_bucket_size"] == layer
