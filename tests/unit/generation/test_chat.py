"""An answer is the greedy completion of the whole conversation, by transformers and its template alone."""

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.errors import UserError
from pretraining.finetuning.chat_template import chat_template
from pretraining.generation.batching import Request
from pretraining.generation.chat import Chat, answer_ends, chat_loop
from pretraining.generation.load_model import load_model
from pretraining.runs.model_source import find_model
from tests.fakes.exported import export_random_model

GREEDY = GenerateArguments(chat=True, greedy=True, repetition_penalty=1.0, max_new_tokens=10)
NUM_POSITIONS = 256
# Its turns end with a control token that config.json does not name as EOS.
OTHER_TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + ']' + message['content'] + unk_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)

Loaded = tuple[LlamaForCausalLM, PreTrainedTokenizerFast]


# With BOS is long: the template puts it there, and test_chat_template.py compares those of both.
@pytest.fixture(
    scope="module",
    params=[pytest.param(False, id="without BOS"), pytest.param(True, id="with BOS", marks=pytest.mark.long)],
)
def model_dir(request: pytest.FixtureRequest, sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    template = chat_template(add_bos=request.param)
    return export_random_model(
        folder, sample_store, add_bos=request.param, chat_template=template, initializer_range=0.2
    )


def open_chat(model_dir: Path, arguments: GenerateArguments = GREEDY) -> Chat:
    return Chat(*load_model(find_model(str(model_dir))), arguments)


def ask(chat: Chat, text: str) -> str:
    return chat.ask(text, lambda _, __: None).text


def expected_ids(model_dir: Path, messages: list[dict[str, str]], num_tokens: int) -> tuple[list[int], list[int]]:
    """Prompt and greedy answer of transformers, whose templates know nothing of this suite."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    found = model.generate(ids, max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
    answer = found[0, ids.shape[1] :].tolist()
    return ids[0].tolist(), answer[:-1] if answer[-1] == tokenizer.eos_token_id else answer


def test_each_answer_completes_the_conversation_so_far(model_dir: Path) -> None:
    chat = open_chat(model_dir, dataclasses.replace(GREEDY, system="Be brief."))
    messages = [{"role": "system", "content": "Be brief."}]
    for text in ("Who?", "And then?\nTell more.", "Why?"):
        messages.append({"role": "user", "content": text})
        requests: list[Request] = []
        completion = chat.ask(text, lambda request, _, seen=requests: seen.append(request))
        prompt, answer = expected_ids(model_dir, messages, GREEDY.max_new_tokens)
        assert requests[0].ids == prompt
        assert completion.tokens == answer
        messages.append({"role": "assistant", "content": completion.text})
    assert chat.messages == messages


def test_a_conversation_that_was_reset_is_a_new_one(model_dir: Path) -> None:
    sampled = dataclasses.replace(GREEDY, greedy=False)
    chat = open_chat(model_dir, sampled)
    first, second = ask(chat, "Who?"), ask(chat, "Who?")
    chat.reset()
    assert ask(chat, "Who?") == first != second
    assert ask(open_chat(model_dir, sampled), "Who?") == first


def test_oldest_turns_make_room_and_the_system_message_stays(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    chat = open_chat(model_dir, dataclasses.replace(GREEDY, system="Be brief."))
    while not any("dropped" in message for message in caplog.messages):
        ask(chat, "Tell me more about the council of the city, please.")
    system, *turns = chat.messages
    assert system == {"role": "system", "content": "Be brief."}
    assert len(turns) > 2
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    prompt, answer = expected_ids(model_dir, chat.messages[:-1], GREEDY.max_new_tokens)
    assert len(prompt) + GREEDY.max_new_tokens <= NUM_POSITIONS
    assert AutoTokenizer.from_pretrained(model_dir).decode(prompt + answer).endswith(turns[-1]["content"])
    assert "dropped 1 turn from the beginning: the model has 256 positions" in caplog.messages


def test_an_answer_ends_where_the_positions_do(model_dir: Path) -> None:
    chat = open_chat(model_dir, dataclasses.replace(GREEDY, max_new_tokens=5000))
    requests: list[Request] = []
    completion = chat.ask("Who?", lambda request, _: requests.append(request))
    assert completion.finish_reason == "length"
    assert len(requests[0].ids) + completion.num_tokens == NUM_POSITIONS


def test_a_message_that_cannot_be_asked_leaves_the_conversation_as_it_was(model_dir: Path) -> None:
    chat = open_chat(model_dir)
    ask(chat, "Who?")
    before = list(chat.messages)
    for text, problem in {
        "council " * 300: "fills the model's 256 positions; shorten it",
        "What is </s>?": "has the name of the control token </s>",
        "a\ud800": "is not UTF-8 text",
    }.items():
        with pytest.raises(UserError, match=problem):
            ask(chat, text)
        assert chat.messages == before
    with pytest.raises(UserError, match="control token </s>"):
        open_chat(model_dir, dataclasses.replace(GREEDY, system="</s>"))


def test_an_unknown_command_is_not_sent_to_the_model(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_model(find_model(str(model_dir)))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"/clear all of it\n/clear\n")))
    with pytest.raises(UserError, match="unknown command /clear; use /reset or /exit"):
        chat_loop(model, tokenizer, GREEDY)
    assert capsys.readouterr().out.strip(), "words after a slash are a message"


def test_an_interrupted_answer_stays_as_far_as_it_came(model_dir: Path) -> None:
    chat = open_chat(model_dir)
    shown: list[str] = []

    def interrupt(_: Request, text: str) -> None:
        shown.append(text)
        if len(shown) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.ask("Who?", interrupt)
    assert chat.messages == [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": shown[-1]}]
    whole = ask(open_chat(model_dir), "Who?")
    assert whole.startswith(shown[-1])
    assert ask(chat, "And?")


def test_what_the_template_puts_after_an_answer_ends_it(sample_store: Path, tmp_path: Path) -> None:
    folder = export_random_model(tmp_path / "model", sample_store, chat_template=OTHER_TEMPLATE)
    loaded = load_model(find_model(str(folder)))
    unk = loaded[1].convert_tokens_to_ids(loaded[1].unk_token)
    assert answer_ends(*loaded) == {2, unk}

    config: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [2, 77]}))
    loaded = load_model(find_model(str(folder)))
    assert answer_ends(*loaded) == {2, 77, unk}
    Chat(*loaded, GREEDY)
    assert loaded[0].config.eos_token_id == sorted({2, 77, unk})


def test_a_word_of_the_template_is_not_taken_for_the_answer(sample_store: Path, tmp_path: Path) -> None:
    template = OTHER_TEMPLATE.replace("+ unk_token", "+ unk_token + ' The answer ends.'")
    folder = export_random_model(tmp_path / "model", sample_store, chat_template=template)
    loaded = load_model(find_model(str(folder)))
    assert answer_ends(*loaded) == {2, loaded[1].convert_tokens_to_ids(loaded[1].unk_token)}


def test_ids_that_the_model_does_not_have_are_one_line(model_dir: Path) -> None:
    model, tokenizer = load_model(find_model(str(model_dir)))
    chat = Chat(model, tokenizer, GREEDY)
    model.config.vocab_size = 10
    with pytest.raises(UserError, match=r"its tokenizer gives id \d+ for the messages, and the model has 10"):
        ask(chat, "Who?")
    model.config.vocab_size = len(tokenizer)
    tokenizer.chat_template = "{{ '' }}"
    with pytest.raises(UserError, match="--chat: the chat template of --model gives no token"):
        ask(chat, "Who?")
    assert chat.messages == []
