"""llama.cpp itself reads what tools.to_gguf writes: the ids of training, the logits of transformers."""

import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from pretraining.finetuning.chat_template import chat_template
from tests.conftest import assert_one_error, run
from tests.fakes.exported import export_random_model
from tests.unit.data.tokenize.test_tokenizer import ODD_TEXTS
from tools.to_gguf import main

TOOL = [sys.executable, "-m", "tools.to_gguf"]
MESSAGES = [{"role": "user", "content": " Who? "}, {"role": "assistant", "content": "They."}]
MESSAGES += [{"role": "user", "content": "Why?"}]
MODEL_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json"]
Ask = Callable[..., Any]


def llama_cpp(gguf_file: Path) -> tuple[object, Ask]:
    """llama.cpp's server in this process, to be kept, and what asks it."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp, llama.cpp as a wheel")
    flags = xllamacpp.CommonParams()
    flags.model.path, flags.n_ctx, flags.cpuparams.n_threads, flags.warmup = str(gguf_file), 256, 1, False
    server = xllamacpp.Server(flags)

    def ask(path: str, **body: object) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    return server, ask


def written(model: Path) -> Path:
    pytest.importorskip("gguf", reason="pip install gguf, which tools.to_gguf needs")
    output = model.with_suffix(".gguf")
    main([str(model), str(output)])
    return output


def check_ids(model: Path) -> None:
    kept, ask = llama_cpp(written(model))
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    for text in ODD_TEXTS:
        if "\x00" not in text:  # at which llama.cpp ends a text
            found = ask("/tokenize", content=text, add_special=True, parse_special=False)["tokens"]
            assert found == tokenizer.encode(text).ids, repr(text)
    del kept


@pytest.mark.parametrize("add_bos", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_ids_are_those_of_the_sample_tokenizer(add_bos: bool, sample_store: Path, tmp_path: Path) -> None:
    check_ids(export_random_model(tmp_path / "model", sample_store, add_bos=add_bos))


@pytest.mark.parametrize("add_bos", [pytest.param(False, marks=pytest.mark.long), True])
def test_the_ids_are_those_of_the_llama2_tokenizer(
    add_bos: bool, sample_store: Path, tmp_path: Path, real_data: Path
) -> None:
    check_ids(
        export_random_model(tmp_path / "model", sample_store, tokenizer_dir=real_data / "llama2", add_bos=add_bos)
    )


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 0.02), pytest.param(torch.bfloat16, 0.2, marks=pytest.mark.long)]
)
@pytest.mark.guarantee("llama.cpp gives the ids and probabilities of transformers.")
def test_the_probabilities_are_those_of_transformers(
    dtype: torch.dtype, most: float, sample_store: Path, tmp_path: Path
) -> None:
    """Where positions turn at another speed and heads share keys; llama.cpp keeps those in fp16.

    It rounds keys and values of two layers to fp16 (2^-11), and what weights in bf16 are multiplied with to bf16 (2^-8
    for each of 15 products): with errors of either sign 0.001 and 0.015 of a logit, of which none is above 10.
    """
    rope = {"rope_type": "default", "rope_theta": 5e5}
    fields = {
        "rope_parameters": rope,
        "initializer_range": 0.1,
        "dtype": dtype,
        "chat_template": chat_template(add_bos=False),
    }
    model = export_random_model(tmp_path / "model", sample_store, **fields)  # type: ignore[arg-type]
    kept, ask = llama_cpp(written(model))
    prompt = "The council has said on Monday that the bridge is closed for 12 days"
    answer = ask("/completion", prompt=prompt, n_predict=4, temperature=0, n_probs=5)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(prompt)["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for found in answer["completion_probabilities"]:
        with torch.no_grad():
            expected = plain(torch.tensor([ids])).logits[0, -1].log_softmax(dim=-1)
        for likely in found["top_logprobs"]:
            assert likely["logprob"] == pytest.approx(expected[likely["id"]].item(), abs=most)
        ids.append(found["id"])
    assert len(answer["completion_probabilities"]) == 4
    asked = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert ask("/apply-template", messages=MESSAGES)["prompt"] == asked
    del kept


def test_what_it_does_not_write_is_told(sample_store: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="pip install gguf, which tools.to_gguf needs")
    model = export_random_model(tmp_path / "model", sample_store)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Metaspace"}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert_one_error(run(*TOOL, model, tmp_path / "a.gguf"), "its tokenizer is neither of train_tokenizer.py's kind")
    assert not (tmp_path / "a.gguf").exists()
    assert_one_error(run(*TOOL, model, model / "config.json"), "exists already; choose another file")
    missing = run(*TOOL, tmp_path, tmp_path / "b.gguf").errors
    assert [error.split(": ")[2].split()[0] for error in missing] == MODEL_FILES
