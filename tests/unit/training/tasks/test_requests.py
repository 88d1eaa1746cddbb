"""Texts of tasks as token ids: split where lm-evaluation-harness splits them, cut on the left, in fixed batches."""

import logging
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pretraining.errors import UserError
from pretraining.training.tasks.requests import BatchShapes, Request, encode_texts
from tests.conftest import PROJECT_DIR


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(PROJECT_DIR / "data/sample/tokenizer")


def encoded(tokenizer: PreTrainedTokenizerFast, context: str, continuation: str, positions: int = 128) -> Request:
    (request,) = encode_texts([(context, continuation)], tokenizer, num_positions=positions, place="--eval_tasks t")
    return request


@pytest.mark.parametrize(("context", "continuation"), [("The council", " is"), ("The council ", "is"), ("a \n", "b c")])
def test_white_space_at_the_end_of_a_context_is_predicted(
    tokenizer: PreTrainedTokenizerFast, context: str, continuation: str
) -> None:
    request = encoded(tokenizer, context, continuation)
    assert request.ids.tolist() == tokenizer(context + continuation)["input_ids"]
    assert request.num_context_tokens == len(tokenizer(context.rstrip())["input_ids"])


def test_after_an_empty_context_eos_or_bos_predicts(tokenizer: PreTrainedTokenizerFast) -> None:
    request = encoded(tokenizer, "", "The council")
    assert request.ids.tolist() == [tokenizer.eos_token_id, *tokenizer("The council")["input_ids"]]
    assert request.num_context_tokens == 1


def test_bos_is_context_where_the_tokenizer_adds_it(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.save_pretrained(tmp_path)
    with_bos = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    bos = [(with_bos.bos_token, with_bos.bos_token_id)]
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{with_bos.bos_token} $A", special_tokens=bos
    )
    for context in ("", "The council"):
        request = encoded(with_bos, context, " is")
        assert request.ids[0] == with_bos.bos_token_id
        assert request.ids.tolist() == with_bos(context + " is")["input_ids"]
        assert request.num_context_tokens == len(with_bos(context)["input_ids"])


def test_long_texts_lose_the_beginning_of_their_context(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    context, continuation = "The council met on Monday and " * 20, "it voted."
    whole, cut = encoded(tokenizer, context, continuation, 10_000), encoded(tokenizer, context, continuation, 32)
    assert "1 of 1 texts are longer than the model's 32 positions, and lose the beginning" in caplog.text
    assert (len(cut.ids), cut.num_inputs) == (33, 32), "the last token is predicted, and not an input"
    assert cut.ids.tolist() == whole.ids[-33:].tolist()
    num_predicted = len(whole.ids) - whole.num_context_tokens
    assert 33 - cut.num_context_tokens == num_predicted > 1
    assert encoded(tokenizer, context, continuation, num_predicted).num_context_tokens == 1
    caplog.set_level(logging.WARNING)
    with pytest.raises(UserError, match=f"--eval_tasks t: .* has {num_predicted} tokens; use {num_predicted - 1} or f"):
        encoded(tokenizer, context, continuation, num_predicted - 1)


def test_a_choice_that_becomes_part_of_the_context_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    """`th` and `the` may both be one token: what is predicted would be nothing."""
    word = next(word for word in ("the", "The", "and") if len(tokenizer(word)["input_ids"]) == 1)
    with pytest.raises(UserError, match="has no token after its context; separate it by white space"):
        encoded(tokenizer, word[:1], word[1:])


def requests(*lengths: int) -> list[Request]:
    return [Request(np.arange(length + 1, dtype=np.int32), 1) for length in lengths]


def test_batches_hold_each_request_once_within_their_tokens() -> None:
    some = requests(*np.random.default_rng(0).integers(2, 100, 200).tolist(), 300)
    for multiple, parts in ((1, 1), (64, 1), (64, 3)):
        shapes = BatchShapes(512, 300, multiple=multiple, num_parts=parts)
        batches = list(shapes.batches(some))
        assert sorted(number for batch in batches for number in batch) == list(range(201))
        widths = [shapes.width(some[batch[0]]) for batch in batches]
        assert widths == sorted(widths, reverse=True)
        for batch, width in zip(batches, widths, strict=True):
            assert len(batch) * width <= 512
            assert width % parts == 0
            assert max(some[number].num_inputs for number in batch) <= width
    assert BatchShapes(10, 300, multiple=64).width(requests(299)[0]) == 300, "never beyond the positions"
    assert list(BatchShapes(10, 300).batches(requests(20, 30))) == [[1], [0]], "one that is larger is alone"
