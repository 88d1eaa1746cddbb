"""Weights are in memory once, whatever they come from."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.errors import UserError
from pretraining.generation import load_model
from tests.programs.launching import run_forked_fine

SIZES = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12, "vocab_size": 2048}
LOAD = """
import json, sys, threading
from pathlib import Path
import torch
from transformers import LlamaConfig
from pretraining.generation import load_model

def own_bytes():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))

class Lazy:
    def __init__(self, shape):
        self.shape = shape
    def contiguous(self):
        return torch.full(self.shape, 1e-3)

folder, only_shards = Path(sys.argv[1]), sys.argv[2] == "shards"
config = LlamaConfig.from_pretrained(folder)
with torch.device("meta"):
    empty = load_model.AutoModelForCausalLM.from_config(config)
shapes = {name: weight.shape for name, weight in empty.named_parameters()}
load_model.open_shards = lambda _: (config, {name: Lazy(shape) for name, shape in shapes.items()})
begin = most = own_bytes()
ended = threading.Event()
def watch():
    global most
    while not ended.wait(0.002):
        most = max(most, own_bytes())
watcher = threading.Thread(target=watch)
watcher.start()
model = load_model.load_weights(folder, config, only_shards=only_shards, dtype_name=sys.argv[3])
ended.set()
watcher.join()
print(json.dumps([model.get_memory_footprint(), most - begin]))
"""


@pytest.fixture(scope="module")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 33 million parameters in bf16, and in fp16; beside them the program that loads one of them."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "load.py").write_text(LOAD)
    for dtype in ("bfloat16", "float16"):
        LlamaForCausalLM(LlamaConfig(**SIZES)).to(getattr(torch, dtype)).save_pretrained(folder / dtype)
    return folder


@pytest.mark.parametrize(
    ("stored", "source", "dtype", "most"),
    [
        ("float16", "files", "float16", 0.3),
        ("bfloat16", "files", "bfloat16", 1.15),
        # Converted as from shards, in the next row, and read as in the row before.
        pytest.param("bfloat16", "files", "float32", 1.15, marks=pytest.mark.long),
        ("bfloat16", "shards", "float32", 1.15),
    ],
)
@pytest.mark.guarantee("Weights are in memory once.")
def test_weights_take_their_own_bytes_and_no_more(
    model_dirs: Path, stored: str, source: str, dtype: str, most: float
) -> None:
    """Mapped files that are not packed take nothing; 1.15 leaves room for one weight on its way, and threads."""
    done = run_forked_fine(sys.executable, model_dirs / "load.py", model_dirs / stored, source, dtype)
    num_bytes, taken = json.loads(done.stdout.splitlines()[-1])
    assert num_bytes > 60e6
    assert taken < most * num_bytes


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = LlamaConfig(**SIZES)
    monkeypatch.setattr(load_model, "available_host_bytes", lambda: 100e6)
    with pytest.raises(UserError, match=r"take 0\.1 GB in float32, and this machine has 0\.1 GB free; use --dtype b"):
        load_model.load_weights(tmp_path, config, only_shards=False, dtype_name="float32")
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16)
    row_bytes = 2 * 12 * 512 * 1000 * 4
    monkeypatch.setattr(load_model, "available_host_bytes", lambda: 10.5 * row_bytes / load_model.MAX_CACHE_SHARE)
    assert load_model.max_rows(model, 1000) == 10
    with pytest.raises(UserError, match="--max_new_tokens: keys and values of one text of 100,000 tokens take"):
        load_model.max_rows(model, 100_000)


def test_a_model_goes_to_the_roomiest_gpu_or_to_several(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    num_bytes = 4 * model.num_parameters()
    assert load_model._gpu_map(model, torch.float32, [num_bytes // 2, 2 * num_bytes]) == {"": 1}
    several = load_model._gpu_map(model, torch.float32, [int(0.7 * num_bytes), int(0.7 * num_bytes)])
    assert set(several.values()) == {0, 1}
    assert load_model._gpu_map(model, torch.float32, [num_bytes // 4, num_bytes // 4]) == {}


def test_free_memory_of_several_gpus_is_asked_without_a_context_on_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context takes half a gigabyte of each GPU."""
    used = {0: 10, 1: 70}
    properties = type("Properties", (), {"total_memory": 80})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "device_memory_used", used.__getitem__)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: pytest.fail("creates a context"))
    assert load_model._free_gpu_bytes() == [70, 10]


def test_a_loaded_model_never_uses_cudnns_attention(model_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It builds a plan for every new length: of each text, and without padding of each token."""
    switched = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", switched.append)
    folder = model_dirs / "float16"
    load_model.load_weights(folder, LlamaConfig.from_pretrained(folder), only_shards=False, dtype_name="float16")
    assert switched == [False]
