"""Templates render as transformers renders them, and name what would be read as a control token."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from pretraining.errors import UserError
from pretraining.finetuning.chat_template import chat_template
from pretraining.generation.chat_template import find_control_token, num_bytes_of, render_messages, rendering_limits
from tests.fakes.exported import export_random_model

MESSAGES = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "They, of Zürich."}]


def tokenizer_of(folder: Path, store: Path, template: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(export_random_model(folder / "m", store, chat_template=template))


def test_the_text_is_that_of_transformers_and_answers_are_where_they_stand(sample_store: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, sample_store, chat_template(add_bos=False))
    with rendering_limits(num_bytes_of(MESSAGES)):
        text, answers = render_messages(tokenizer, MESSAGES, "", return_assistant_tokens_mask=True)
        asked, _ = render_messages(tokenizer, MESSAGES[:1], "", add_generation_prompt=True)
    assert text == tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert [text[begin:end] for begin, end in answers] == ["They, of Zürich.</s>"]
    assert text[: answers[0][0]] == asked
    assert num_bytes_of(MESSAGES) == len("Who?They, of Zürich.") + 1


def test_a_template_that_fails_names_the_place(sample_store: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, sample_store, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match=r"^chat.jsonl:7: the chat template of --model failed .*roles must alternate"):
        render_messages(tokenizer, MESSAGES, "chat.jsonl:7: ")


def test_names_of_control_tokens_are_found_in_any_message(sample_store: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, sample_store, chat_template(add_bos=False))
    assert find_control_token(tokenizer, MESSAGES) is None
    assert find_control_token(tokenizer, [*MESSAGES, {"role": "user", "content": "What does </s> do?"}]) == "</s>"
