"""No secret and no absolute path gets through, and nothing else is changed."""

import json
from pathlib import Path
from typing import Any

import pytest

from pretraining.system.privacy import MASK, hide_path, hide_paths, hide_paths_of_command, mask, mask_all, mask_words

SECRET = "S3cr3tV4lue"
TOKEN = f"hf_{'aB3' * 11}"
# Text of errors, configs and answers of servers; each has SECRET or another word that must not be shown.
TEXTS = [
    f"MLFLOW_TRACKING_URI=https://me:{SECRET}@host/mlflow",
    f"HTTPS_PROXY=http://user:{SECRET}@proxy:3128",
    f"cannot reach http://{SECRET}@host/simple",
    f"https://user:p@ss{SECRET}@host: refused",
    f"ProxyError('http://u:{SECRET}@proxy:1/')",
    f"https://host/api?token={SECRET}&page=2",
    f"https://bucket.host/file?X-Amz-Security-Token={SECRET}",
    f"wandb_api_key={SECRET}",
    f"WANDB_API_KEY={SECRET} python3 pretrain.py",
    f"MY_PASSWD={SECRET}",
    f"db_password='{SECRET} and more'",
    f'db_password="{SECRET} and more"',
    f"AZURE_CREDENTIALS={SECRET}",
    f"client-secret={SECRET}",
    f"api.key={SECRET}",
    f"accessKey={SECRET}",
    f'{{"comet": {{"api_key": "{SECRET}"}}}}',
    f"{{'api_key': '{SECRET}'}}",
    f'{{"hub_token":"{SECRET}"}}',
    f'a string of JSON: {{\\"token\\": \\"{SECRET}\\"}}',
    f"--deepspeed {{'wandb': {{'password': '{SECRET}'}}}}",
    f"Authorization: Bearer {SECRET}",
    f"authorization=Basic {SECRET}",
    f"hf auth login --token api_org_{SECRET}{SECRET}",
    f"401 for hf_{SECRET}{SECRET}",
    f"git clone https://x:ghp_{SECRET * 3}@github.com/a/b",
    f"ghp_{SECRET * 3} is expired",
    f"github_pat_{SECRET * 3}",
    f"glpat-{SECRET * 2}",
    f"OPENAI=sk-{SECRET * 2}",
    f"xoxb-1-{SECRET}",
    f"eyJhbGciOiJ.{SECRET}.{SECRET}",
    f"wandb login wandb_v1_{SECRET}",
]
WORDS = [
    ["--hub_token", SECRET],
    [f"--hub_token={SECRET}"],
    ["--hub-token", SECRET],
    ["--hub_token", f"{SECRET} with spaces", "and 'quotes'"],
    [f'--push_to_hub_token={SECRET} "quoted" value'],
    ["--deepspeed", json.dumps({"comet": {"enabled": True, "api_key": SECRET}})],
    ["--lr_scheduler_kwargs", json.dumps({"a": [{"credentials": {"user": "me", "value": SECRET}}]})],
    ["--accelerator_config", '{"token": "' + SECRET],
    ["--dataset", f"https://me:{SECRET}@host/blocks"],
    [f"wandb_api_key={SECRET} more"],
    ["--run_name", f"hf_{SECRET}"],
]
HARMLESS = [
    "--global_batch_tokens=4194304 --max_tokens 5 --seed 7",
    "num_key_value_heads=2 tokenizer=llama2 tokens=5",
    "step 5: tokens/s/GPU 12,000, keys and values; token: none",
    "https://huggingface.co/datasets/alice/blocks at commit 0123456789abcdef0123456789abcdef01234567",
    "alice@host:/data, a//b, 3 // 2, see README.md",
    "monkey business, a key: value, author=me",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_without_its_secret(text: str) -> None:
    masked = mask(f"before {text} after")
    assert SECRET not in masked
    assert MASK in masked
    assert masked.startswith("before ")
    assert mask(masked) == masked
    for value in ({"event": "warning", "message": text}, [text], {"a": {"b": [text]}}):
        assert SECRET not in json.dumps(mask_all(value))


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words[0][:30])
def test_a_command_line_without_its_secret(words: list[str]) -> None:
    masked = mask_words(["--seed", "7", *words, "--max_steps", "3"])
    assert SECRET not in " ".join(masked)
    assert (masked[:2], masked[-2:]) == (["--seed", "7"], ["--max_steps", "3"])


@pytest.mark.parametrize(
    "name",
    ["hub_token", "API_KEY", "wandb.api_key", "password", "passwd", "client_secret", "AWS-Credentials", "apiKey"],
)
def test_a_value_with_a_secret_name(name: str) -> None:
    assert mask_all({name: SECRET, "other": SECRET}) == {name: MASK, "other": SECRET}
    assert mask_all({name: {"a": SECRET}}) == {name: MASK}
    unset: dict[str, Any] = {name: None, "num_key_value_heads": 2, "pad_token_id": 3}
    assert mask_all(unset) == unset


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_not_secret_stays(text: str) -> None:
    assert mask(text) == text
    assert mask_words(text.split()) == text.split()


def test_the_value_of_a_secret_variable_is_found_without_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("some_api_key", SECRET)
    monkeypatch.setenv("SHORT_TOKEN", "1")
    monkeypatch.setenv("PWD", "/work/folder")
    assert mask(f"{SECRET} in /work/folder, 1 time") == f"{MASK} in /work/folder, 1 time"


def test_no_absolute_path_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert hide_path(tmp_path / "here/runs/a b") == "runs/a b"
    assert hide_path("/home/jane doe/blocks") == "blocks"
    assert hide_path("data/news.jsonl") == "data/news.jsonl"
    text = f"{tmp_path}/here/runs/x/checkpoint-5: saved; '/home/jane/news.jsonl':3, 5 tokens/s/GPU, https://a.b/c/d"
    assert hide_paths(text) == "runs/x/checkpoint-5: saved; 'news.jsonl':3, 5 tokens/s/GPU, https://a.b/c/d"
    command = (
        "deepspeed pretrain.py --dataset 'news=/home/jane doe/blocks:0.7' wiki=/data/w:0.3 --output_dir=/mnt/x/run"
    )
    assert hide_paths_of_command(command) == (
        "deepspeed pretrain.py --dataset news=blocks:0.7 wiki=w:0.3 --output_dir=run"
    )
    assert hide_paths_of_command("pretrain.py --dataset '/home/jane/blocks") == "pretrain.py --dataset 'blocks"
