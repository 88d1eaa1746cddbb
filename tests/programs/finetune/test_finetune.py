"""Whole runs of finetune.py: what is learned is the answers, however they are packed, and the model can be asked."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, pipeline

from pretraining.data.store.manifest import read_manifest
from tests.conftest import PROJECT_DIR, Done, assert_one_error, python, run
from tests.fakes.hub import running_hub
from tests.fakes.hub.server import ALICE
from tests.programs.launching import figures, records, run_forked_fine, run_preloaded, train
from tests.rounding import assert_same_training, loss_rounding

pytestmark = pytest.mark.launch

NUM_CONVERSATIONS = 16  # two fit into a block of 128 tokens, so that a step of eight blocks reads all of them
NUM_STEPS = 3
# What finetune.py does before it trains; arguments: model, run folder, data files and flags.
WRITES_BLOCKS = """
import sys
from pathlib import Path
from pretraining.cli.arguments.finetune import parse_finetune_arguments
from pretraining.cli.program import run_program
from pretraining.finetuning.inputs import find_inputs_of
from pretraining.finetuning.pipeline import make_blocks
from pretraining.finetuning.store import log_store

def main(words):
    model, run_dir, *rest = words
    flags = ["--model", model, "--output_dir", run_dir, "--split", "1,0,0", "--block_length", "128"]
    arguments = parse_finetune_arguments("", [*flags, "--data_files", *rest])
    log_store(make_blocks(arguments.conversations, find_inputs_of(arguments)))

run_program(main)
"""
SIZES = {"block_length": 128, "step_tokens": 8 * 128}
Messages = list[dict[str, str]]


@pytest.fixture(scope="module")
def base_model(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("base") / "run"
    train("1 rank", sample_store, run_dir, "--max_steps", 2, "--save_strategy", "no", "--eval_strategy", "no")
    return run_dir / "model"


@pytest.fixture(scope="module")
def conversations() -> list[Messages]:
    """Some of two answers, some with an instruction before them."""
    lines = (PROJECT_DIR / "data/sample/news.jsonl").read_text().splitlines()[:NUM_CONVERSATIONS]
    found = []
    for number, line in enumerate(lines):
        words = json.loads(line)["text"].split()
        turns = [("user", words[:4]), ("assistant", words[4 : 10 + number % 3])]
        if number % 2:
            turns += [("user", ["Go", "on."]), ("assistant", words[12:16])]
        else:
            turns = [("system", ["Be", "brief."]), *turns]
        found.append([{"role": role, "content": " ".join(part)} for role, part in turns])
    return found


@pytest.fixture(scope="module")
def chat_file(conversations: list[Messages], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return path


def try_to_finetune(num_ranks: int, model: Path, chat_file: Path, run_dir: Path, *flags: object) -> Done:
    words = [PROJECT_DIR / "finetune.py", "--model", model, "--data_files", chat_file, "--output_dir", run_dir]
    words += [
        "--split",
        "1,0,0",
        "--block_length",
        128,
        "--bf16",
        "false",
        "--report",
        "false",
        "--eval_strategy",
        "no",
    ]
    words += ["--learning_rate", "1e-3", "--per_device_train_batch_size", 2, "--max_steps", NUM_STEPS, *flags]
    return run_preloaded(num_ranks, words, {"PYTHONPATH": str(PROJECT_DIR)})


def finetune(model: Path, chat_file: Path, run_dir: Path, *flags: object, num_ranks: int = 2) -> Done:
    done = try_to_finetune(num_ranks, model, chat_file, run_dir, *flags)
    assert done.returncode == 0, done.output[-6000:]
    return done


def num_blocks(done: Done) -> int:
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("train ")]
    words = line.split()
    assert words[1:3] == [f"{NUM_CONVERSATIONS}", "conversations"]
    return int(words[-2])


@pytest.fixture(scope="module")
def tuned_run(base_model: Path, chat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("tuned") / "run"
    done = finetune(base_model, chat_file, run_dir, "--gradient_accumulation_steps", 2, "--save_steps", 2)
    assert num_blocks(done) == 8
    assert "fresh weights" not in done.stderr
    assert f"conversations by format: messages {NUM_CONVERSATIONS}\n" in done.stderr
    assert done.stderr.splitlines()[-1] == f"next: python3 generate.py --model {run_dir} --chat"
    return run_dir


def ids_of(tokenizer: PreTrainedTokenizerBase, messages: Messages, **options: bool) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=False, **options)


@torch.no_grad()
def answer_loss(model_dir: Path, tokenizer: PreTrainedTokenizerBase, conversations: list[Messages]) -> float:
    """By transformers alone, each conversation by itself; an answer is what is not asked for yet when it begins."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    losses = []
    for messages in conversations:
        ids = torch.tensor([ids_of(tokenizer, messages)])
        log_probabilities = model(ids).logits.log_softmax(dim=-1)[0]
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                begin = len(ids_of(tokenizer, messages[:number], add_generation_prompt=True))
                end = len(ids_of(tokenizer, messages[: number + 1]))
                assert ids[0, end - 1] == tokenizer.eos_token_id
                losses += [-log_probabilities[place - 1, ids[0, place]].item() for place in range(begin, end)]
    return float(np.mean(losses))


@pytest.mark.guarantee("The loss of fine-tuning is that of the answers alone, by transformers on each conversation.")
def test_the_loss_is_that_of_the_answers_alone(
    base_model: Path, tuned_run: Path, conversations: list[Messages]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tuned_run / "model")
    steps = records(tuned_run)
    assert steps[0]["loss"] == pytest.approx(answer_loss(base_model, tokenizer, conversations), rel=loss_rounding(128))
    assert answer_loss(tuned_run / "model", tokenizer, conversations) < steps[-1]["loss"] < steps[0]["loss"]


@pytest.mark.guarantee("Packed conversations train like padded ones.")
def test_packed_conversations_train_like_padded_ones(
    base_model: Path, chat_file: Path, tuned_run: Path, tmp_path: Path
) -> None:
    flags = ["--packing", "alone", "--gradient_accumulation_steps", 8, "--save_strategy", "no", "--export", "false"]
    done = finetune(base_model, chat_file, tmp_path / "run", *flags, num_ranks=1)
    assert num_blocks(done) == 16
    assert len(figures(tuned_run)) == NUM_STEPS
    assert_same_training(figures(tmp_path / "run"), figures(tuned_run), **SIZES)


@pytest.mark.parametrize(
    "flags",
    [
        ["--mlp_tiles", 2, "--loss_tiles", 3],
        # That both train like ZeRO-3 is held by test_the_lower_stages_train_what_stage_3_trains.
        pytest.param(["--deepspeed", "ds_config_zero1.json"], marks=pytest.mark.long),
        pytest.param(["--deepspeed", "ds_config_zero2.json"], marks=pytest.mark.long),
    ],
    ids=["tiles", "ZeRO-1", "ZeRO-2"],
)
def test_tiles_and_stages_change_nothing(
    flags: list[object], base_model: Path, chat_file: Path, tuned_run: Path, tmp_path: Path
) -> None:
    flags = [*flags, "--save_strategy", "no", "--export", "false"]
    finetune(base_model, chat_file, tmp_path / "run", "--gradient_accumulation_steps", 4, *flags, num_ranks=1)
    assert_same_training(figures(tmp_path / "run"), figures(tuned_run), **SIZES)


@pytest.mark.guarantee("Fine-tuning resumes bit by bit.")
def test_a_resumed_run_equals_one_never_stopped(
    base_model: Path, chat_file: Path, tuned_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(tuned_run, run_dir)
    for name in ("checkpoint-3", "model"):
        shutil.rmtree(run_dir / name)
    done = finetune(base_model, chat_file, run_dir, "--gradient_accumulation_steps", 2, "--save_steps", 2)
    assert f"resuming from {run_dir}/checkpoint-2" in done.stderr
    assert figures(run_dir) == figures(tuned_run)
    weights = [(folder / "model/model.safetensors").read_bytes() for folder in (run_dir, tuned_run)]
    assert weights[0] == weights[1]

    path = base_model / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = try_to_finetune(1, base_model, chat_file, run_dir, "--gradient_accumulation_steps", 4)
    path.write_bytes(content)
    assert_one_error(done, "--resume: initial_weights.model.safetensors differs from that of", "its files have changed")


@pytest.mark.guarantee("A chat template gives the ids of training.")
def test_the_ids_of_training_are_those_of_the_exported_chat_template(
    tuned_run: Path, conversations: list[Messages]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tuned_run / "model")
    rows = pq.read_table(next((tuned_run / "blocks/data").glob("train-*"))).to_pylist()
    found = {}
    for row in rows:
        ends = [*row["document_starts"][1:], 128 - row["num_padding_tokens"]]
        for number, start, end in zip(row["document_ids"], row["document_starts"], ends, strict=True):
            found[number] = row["input_ids"][start:end]
    assert [found[number] for number in range(NUM_CONVERSATIONS)] == [
        ids_of(tokenizer, messages) for messages in conversations
    ]
    asked = ids_of(tokenizer, conversations[0][:2], add_generation_prompt=True)
    assert found[0][: len(asked)] == asked


def test_the_exported_model_can_be_asked_and_says_where_it_comes_from(tuned_run: Path, base_model: Path) -> None:
    answer = pipeline("text-generation", model=str(tuned_run / "model"))
    (said,) = answer([{"role": "user", "content": "Who?"}], max_new_tokens=3, do_sample=False)
    assert [message["role"] for message in said["generated_text"]] == ["user", "assistant"]
    flags = ["--chat", "--greedy", "--repetition_penalty", 1, "--max_new_tokens", 3]
    asked = run_forked_fine(*python("generate.py", "--model", tuned_run, *flags), stdin="Who?\n")
    assert asked.stdout.strip() == said["generated_text"][-1]["content"].strip()
    card = (tuned_run / "model/README.md").read_text()
    assert f"fine-tuned from `{base_model.parent.name}/{base_model.name}`" in card
    assert str(base_model) not in card
    assert "random weights" not in card
    assert f"{NUM_CONVERSATIONS} conversations and" in card
    assert f"formats of the conversations, all splits: messages {NUM_CONVERSATIONS}.\n" in card
    assert "`finetune.py --license`" in card
    record = json.loads((tuned_run / "run.json").read_text())
    assert record["identity"]["initial_weights"].keys() == {"model.safetensors"}
    assert record["arguments"]["weights"] == str(base_model)


def test_what_cannot_be_learned_from_is_left_out_and_listed(base_model: Path, tmp_path: Path) -> None:
    long = {"prompt": "Why?", "response": "Because of the council. " * 40}
    odd = {"prompt": "What ends a text?", "response": "It is </s> that does."}
    empty = {"instruction": "Say nothing.", "input": "", "output": ""}
    chat_file = tmp_path / "chat.jsonl"
    chat_file.write_text("".join(json.dumps(line) + "\n" for line in (long, odd, empty)))
    done = try_to_finetune(1, base_model, chat_file, tmp_path / "run")
    assert_one_error(
        done, "no conversation is left to train on (1 control token, 1 empty message, 1 longer than block)"
    )
    skipped = [
        json.loads(line)
        for line in (tmp_path / "run/blocks.partial-conversations/skipped.jsonl").read_text().splitlines()
    ]
    assert [(line["line"], line["reason"]) for line in skipped] == [
        (1, "longer_than_block"),
        (2, "control_token"),
        (3, "empty_message"),
    ]


@pytest.mark.guarantee("Formats, JSON, Parquet and a data set of the Hub give the blocks of the same messages.")
def test_other_formats_and_the_hub_give_the_same_blocks(
    base_model: Path, conversations: list[Messages], tmp_path: Path
) -> None:
    pairs = [(messages[-2]["content"], messages[-1]["content"]) for messages in conversations]
    names = {"user": "human", "assistant": "gpt"}
    turns = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in pairs]
    records = {
        "messages": [{"messages": messages} for messages in turns],
        "sharegpt": [{"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in t]} for t in turns],
        "alpaca": [{"instruction": asked, "input": "", "output": said} for asked, said in pairs],
        "prompt/completion": [{"prompt": asked, "completion": said} for asked, said in pairs],
        "named fields": [{"question": asked, "answer": {"text": said}} for asked, said in pairs],
    }
    (tmp_path / "script").mkdir()
    (tmp_path / "script/self_instruct.py").write_text("raise SystemExit")
    exported = tmp_path / "exported/self_instruct/train/0000.parquet"
    exported.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(records["prompt/completion"]), exported)
    (tmp_path / "sharegpt.json").write_text(json.dumps(records["sharegpt"], indent=2))
    pq.write_table(pa.Table.from_pylist(records["named fields"]), tmp_path / "named.parquet")
    for name in ("messages", "alpaca"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[name]))

    found, script = {}, tmp_path / "writes_blocks.py"
    script.write_text(WRITES_BLOCKS)
    with running_hub() as hub:
        repository = hub.storage.serve_folder("dataset", "yizhongw/self_instruct", tmp_path / "script", private=False)
        export = hub.storage.serve_folder("dataset", "yizhongw/export", tmp_path / "exported", private=False)
        repository.trees = {export.head: export.trees[export.head], **repository.trees}
        repository.branches["refs/convert/parquet"] = export.head
        env = hub.env(tmp_path / "home", ALICE)
        for name, words in {
            "messages": [tmp_path / "messages.jsonl"],
            "sharegpt": [tmp_path / "sharegpt.json"],
            "alpaca": [tmp_path / "alpaca.jsonl"],
            "prompt/completion": ["hf://yizhongw/self_instruct"],
            "named fields": [
                tmp_path / "named.parquet",
                "--prompt_field",
                "question",
                "--response_field",
                "answer.text",
            ],
        }.items():
            run_dir = tmp_path / "runs" / name.replace("/", "_")
            command = [sys.executable, script, base_model, run_dir, *words]
            done = run_forked_fine(*command, env=env)
            assert f"conversations by format: {name} {NUM_CONVERSATIONS}\n" in done.stderr
            found[name] = pq.read_table(run_dir / "blocks/data").to_pylist()
            assert read_manifest(run_dir / "blocks", flag="").conversations == {name: NUM_CONVERSATIONS}
    assert all(blocks == found["messages"] for blocks in found.values())


def test_bad_input_is_one_line(base_model: Path, chat_file: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    bad = tmp_path / "bad.jsonl"
    no_role = json.dumps({"messages": [{"content": "a"}, {"role": "assistant", "content": "b"}]})
    bad.write_text('{"prompt": "a", "response": "b"}\n' + f"{no_role}\n" * 1000)
    done = try_to_finetune(2, base_model, bad, run_dir)
    assert_one_error(
        done, f"a message without a role in 1,000 of 1,001 records (first: line 2 of {bad}; found content)"
    )
    assert not run_dir.exists(), "nothing is written, and no weight is read"
    for model in (tmp_path / "nothing", PROJECT_DIR / "recipes"):
        assert_one_error(try_to_finetune(1, model, chat_file, run_dir), f"--model {model}: is ")
    occupied = try_to_finetune(1, base_model, chat_file, base_model.parent)
    assert_one_error(occupied, f"--output_dir {base_model.parent}: has other files")
    endless = tmp_path / "endless"
    shutil.copytree(base_model, endless)
    for name, fields in {
        "tokenizer_config.json": {"eos_token": None},
        "config.json": {"eos_token_id": None},
        "generation_config.json": {"eos_token_id": None},
    }.items():
        (endless / name).write_text(json.dumps(json.loads((endless / name).read_text()) | fields))
    assert_one_error(try_to_finetune(1, endless, chat_file, run_dir), "has no eos_token")


def test_missing_flags_are_told_at_once() -> None:
    done = run(*python("finetune.py"))
    assert [line.split(": ")[1] for line in done.errors] == ["--model", "--data_files"]
