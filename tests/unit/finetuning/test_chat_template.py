"""Blocks of conversations: which tokens are learned, whatever shares their block, by whoever applies the template."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from pretraining.cli.arguments.finetune import parse_finetune_arguments
from pretraining.data.store.manifest import read_manifest
from pretraining.errors import UserError
from pretraining.finetuning.chat_template import chat_template
from pretraining.finetuning.inputs import find_inputs_of
from pretraining.finetuning.pipeline import make_blocks
from pretraining.training.data.batch import collate_targets
from pretraining.training.data.dataset import IGNORED_LABEL, BlockDataset, BlockFields
from pretraining.training.metrics.evaluation import evaluate_blocks, losses_by
from tests.conftest import PROJECT_DIR
from tests.fakes.exported import SHAPE, export_random_model
from tests.rounding import path_length, sum_rounding

NUM_CONVERSATIONS = 12
BLOCK_LENGTH = 96
Messages = list[dict[str, str]]


@pytest.fixture(scope="module")
def model(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sharp enough that a wrong mask or a neighbour that is seen shows in the loss; it puts BOS before a text."""
    folder = tmp_path_factory.mktemp("base") / "model"
    return export_random_model(folder, sample_store, add_bos=True, initializer_range=0.2)


def conversations() -> list[Messages]:
    lines = (PROJECT_DIR / "data/sample/news.jsonl").read_text().splitlines()[:NUM_CONVERSATIONS]
    found = []
    for number, line in enumerate(lines):
        words = json.loads(line)["text"].split()
        turns = [("user", words[:4]), ("assistant", words[4 : 7 + number])]
        if number % 2:
            turns += [("user", ["Go", "on.\n"]), ("assistant", [" ", *words[12:16], "1,234 €\n\n"])]
        found.append([{"role": role, "content": " ".join(part)} for role, part in turns])
    return found


def store_of(model: Path, folder: Path, *flags: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations()))
    words = ["--model", model, "--data_files", path, "--output_dir", folder / "run", "--split", "1,0,0"]
    words += ["--block_length", BLOCK_LENGTH, *flags]
    arguments = parse_finetune_arguments("", [str(word) for word in words])
    return make_blocks(arguments.conversations, find_inputs_of(arguments))


def blocks_of(store: Path) -> BlockDataset:
    return BlockDataset(store, read_manifest(store, flag=""), "train", fields=BlockFields(document_masking=True))


def figures_of(model: Path, store: Path) -> dict[str, float]:
    opened = AutoModelForCausalLM.from_pretrained(model).eval()
    opened.config.use_cache = False
    batches = DataLoader(blocks_of(store), batch_size=2, collate_fn=collate_targets)
    return evaluate_blocks(losses_by(opened), batches, sources=["all"], device=torch.device("cpu"))


@torch.no_grad()
def plain_losses(model: Path, tokenizer_dir: Path) -> list[float]:
    """Of each answer token, by transformers on each conversation alone; an answer is what was not asked for yet."""
    opened, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(tokenizer_dir)
    losses = []
    for messages in conversations():
        ids = torch.tensor([tokenizer.apply_chat_template(messages, return_dict=False)])
        log_probabilities = opened(ids).logits.log_softmax(dim=-1)[0]
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                until = tokenizer.apply_chat_template(messages[:number], add_generation_prompt=True, return_dict=False)
                whole = tokenizer.apply_chat_template(messages[: number + 1], return_dict=False)
                assert (whole[: len(until)], whole[-1]) == (until, tokenizer.eos_token_id)
                places = range(len(until), len(whole))
                losses += [-log_probabilities[place - 1, ids[0, place]].item() for place in places]
    return losses


def test_the_loss_is_that_of_the_answers_alone_however_they_are_packed(
    model: Path, sample_store: Path, tmp_path: Path
) -> None:
    with_template = tmp_path / "with_template"
    export_random_model(with_template, sample_store, add_bos=True, chat_template=chat_template(add_bos=True))
    losses = plain_losses(model, with_template)
    figures = []
    for packing in ("best_fit", "alone"):
        (tmp_path / packing).mkdir()
        store = store_of(model, tmp_path / packing, "--packing", packing)
        figures.append(figures_of(model, store))
        assert len(blocks_of(store)) == (NUM_CONVERSATIONS if packing == "alone" else 8)
    for found in figures:
        assert found["num_tokens"] == len(losses)
        assert found["loss"] == pytest.approx(
            np.mean(losses), rel=sum_rounding(path_length(LlamaConfig(**SHAPE), BLOCK_LENGTH))
        )


def test_a_block_says_what_is_learned(model: Path, tmp_path: Path) -> None:
    item = blocks_of(store_of(model, tmp_path, "--packing", "alone"))[1]
    tokenizer = AutoTokenizer.from_pretrained(model)
    learned = item["labels"] != IGNORED_LABEL
    answers = [message["content"].strip() for message in conversations()[1] if message["role"] == "assistant"]
    assert tokenizer.decode(item["labels"][learned]) == "".join(f"{answer}</s>" for answer in answers)
    assert tokenizer.decode(item["input_ids"][:8]).startswith("<s><|user|>\n")


def test_an_eos_that_only_the_model_names_ends_answers(model: Path, tmp_path: Path) -> None:
    unnamed = shutil.copytree(model, tmp_path / "unnamed")
    config = json.loads((unnamed / "tokenizer_config.json").read_text())
    (unnamed / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    blocks = [blocks_of(store_of(folder, tmp_path / folder.name)) for folder in (model, unnamed)]
    assert len(blocks[0]) == len(blocks[1])
    for number in range(len(blocks[0])):
        for name, values in blocks[0][number].items():
            assert torch.equal(values, blocks[1][number][name])


def test_a_template_that_marks_no_answers_is_refused(sample_store: Path, tmp_path: Path) -> None:
    folder = export_random_model(tmp_path / "model", sample_store, chat_template="{{ messages[0]['content'] }}")
    with pytest.raises(UserError, match=r"its chat template has no .* around the assistant's answers"):
        store_of(folder, tmp_path)


def test_a_mark_that_removes_space_is_a_mark(model: Path, tmp_path: Path) -> None:
    marked = shutil.copytree(model, tmp_path / "marked")
    template = chat_template(add_bos=True)
    trimming = template.replace("{% generation %}", "{%- generation -%}").replace(
        "endgeneration %}", "endgeneration -%}"
    )
    assert trimming != template
    (marked / "chat_template.jinja").write_text(trimming)
    blocks = [blocks_of(store_of(folder, tmp_path / folder.name)) for folder in (model, marked)]
    assert len(blocks[0]) == len(blocks[1])
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(*blocks, strict=True))


def test_a_store_of_other_conversations_or_flags_is_not_trained_on(model: Path, tmp_path: Path) -> None:
    store = store_of(model, tmp_path)
    before = (store / "manifest.json").read_bytes()
    assert store_of(model, tmp_path) == store
    with pytest.raises(UserError, match=r"has a block store of other input or flags .*block_length 96, not 64"):
        store_of(model, tmp_path, "--block_length", 64)
    assert (store / "manifest.json").read_bytes() == before
