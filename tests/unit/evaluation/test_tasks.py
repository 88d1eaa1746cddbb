"""Tasks with a loaded model: the scores of a model that knows its grammar, and their table."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.evaluation.tasks import score_model, task_lines
from pretraining.training.tasks.files import Example, FileTask
from tests.conftest import PROJECT_DIR


def test_a_model_that_knows_the_next_token_is_always_right() -> None:
    """One layer that does nothing, and a head that gives each token its successor in the only text."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(PROJECT_DIR / "data/sample/tokenizer")
    ids = tokenizer("The council met on Friday")["input_ids"]
    assert len(set(ids)) == len(ids)
    size = len(tokenizer)
    config = LlamaConfig(vocab_size=size, hidden_size=32, intermediate_size=8, num_hidden_layers=1)
    config.num_attention_heads, config.num_key_value_heads, config.max_position_embeddings = 1, 1, 64
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(1)
        for place, (before, after) in enumerate(pairwise(ids)):
            model.model.embed_tokens.weight[before, place] = 1
            model.lm_head.weight[after, place] = 1
    examples = [
        Example("The council met", ("in May", "on Friday"), 1, " "),
        Example("The", ("council", "town"), 0, " "),
    ]
    tasks = [FileTask("right", examples), FileTask("words", [Example("The council met on", ("Friday",), 0, " ")])]
    found = score_model(model, tokenizer, tasks, batch_tokens=64)
    assert list(found) == ["right", "words"]
    assert (found["right"]["acc"], found["right"]["acc_norm"], found["right"]["chance"]) == (1, 1, 0.5)
    # RMS norm makes the only 1 of the 32 numbers sqrt(32): the logit of the successor, all others have 0.
    assert found["words"]["perplexity"] == pytest.approx(1 + (size - 1) * np.exp(-np.sqrt(32)), rel=1e-3)
    assert found["words"]["acc"] == 1


def test_one_row_per_model_and_task() -> None:
    choices = {"acc": 0.625, "acc_stderr": 0.0151, "chance": 0.25, "num_examples": 1024}
    cloze = {"acc": 0.5, "perplexity": 1234.5, "num_examples": 1}
    assert list(task_lines({"a": {"arc": choices, "lambada": cloze}})) == [
        "task              acc  chance  perplexity  examples",
        "arc      62.5% ± 1.5%   25.0%                 1,024",
        "lambada         50.0%            1,234.50         1",
    ]
    lines = list(task_lines({"checkpoint-1": {"arc": choices}, "model": {"arc": {**choices, "acc": float("nan")}}}))
    assert [line.split()[:3] for line in lines] == [
        ["model", "task", "acc"],
        ["checkpoint-1", "arc", "62.5%"],
        ["model", "arc", "nan%"],
    ]
    assert list(task_lines({})) == []
