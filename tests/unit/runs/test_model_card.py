"""The model card says what the run folder does: sums over all starts, the figures as measured, metadata as the Hub."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonlines
import markdown_it
import pytest
from huggingface_hub import ModelCard

from pretraining.runs.history import read_history
from pretraining.runs.model_card import CardData, CardFacts, CardParent, ParentCard, read_parent_card, write_card

RUN_RECORD: dict[str, Any] = {
    "command": "python3 pretrain.py --hub_token ***",
    "identity": {
        "model_config": {
            "num_hidden_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "vocab_size": 8192,
            "max_position_embeddings": 128,
            "tie_word_embeddings": False,
        },
        "global_batch_tokens": 512,
        "document_masking": False,
        "precision": "bf16",
        "seed": 42,
        "optimizer": "adamw",
        "optimizer_settings": {
            "adam_beta1": 0.9,
            "adam_beta2": 0.95,
            "adam_epsilon": 1e-8,
            "weight_decay": 0.1,
            "max_grad_norm": 1.0,
        },
    },
    "schedule": {"shape": "cosine", "peak": 3e-4, "minimum": 3e-5, "warmup_steps": 2, "num_steps": 40},
    "num_parameters": 1000,
    "hardware": {"num_processes": 4, "gpu": "NVIDIA H200", "num_cpu_cores": 64},
    "packages": {"torch": "2.13.0"},
    "git": {"commit": "0123abcd", "is_dirty": True},
    "earlier_starts": [{}],
}
DATA = CardData("alice/blocks", "c0ffee", "5ha", 120, 40_000, 1.0, ["news: `news.jsonl` (5 bytes, sha256 `ab...`)"])
PARENT = CardParent("runs/first/model", {"model.safetensors": "0abc"}, "llama2", is_tuned=True)
FACTS = CardFacts("model", 40, 20_480, 1.25, [DATA], 64, "`llama2`, 32,000 tokens", None)


def training_record(step: int, logged_at: float, **figures: Any) -> dict[str, Any]:
    return {"step": step, "loss": 5.0, "tokens": 512 * step, "logged_at": logged_at, **figures}


# Two starts: 8 processes for half an hour, then 4 for an hour; the energy begins anew in the second.
RECORDS: list[dict[str, Any]] = [
    {"step": 0, "event": "start", "num_processes": 8, "logged_at": 1000.0},
    training_record(10, 1900.0, interval_seconds=900.0, energy_joules=1.8e6),
    training_record(20, 2800.0, interval_seconds=900.0, energy_joules=3.6e6),
    {"step": 20, "eval_loss": 6.0, "eval_perplexity": 403.0, "eval_accuracy": 0.25, "logged_at": 2801.0},
    {"step": 20, "event": "start", "num_processes": 4, "logged_at": 9000.0},
    training_record(30, 10800.0, interval_seconds=1800.0, energy_joules=7.2e6),
    training_record(40, 12600.0, interval_seconds=1800.0, energy_joules=1.44e7, spikes=3, non_finite_steps=0),
    {"step": 40, "eval_loss": 5.5, "eval_perplexity": 244.7, "eval_accuracy": 0.3, "eval_bits_per_byte": 1.9},
    {"step": 40, "test_loss": 5.75, "test_perplexity": "inf", "test_accuracy": 0.28, "test_loss/news": 5.7},
]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(RUN_RECORD))
    with jsonlines.open(tmp_path / "metrics.jsonl", "w") as writer:
        writer.write_all(RECORDS)
    return tmp_path


def card_of(run_dir: Path, facts: CardFacts = FACTS, folder: Path | None = None) -> ModelCard:
    write_card(folder or run_dir, read_history(run_dir, until_step=facts.step), facts, location="alice/model")
    return ModelCard.load((folder or run_dir) / "README.md")


@pytest.mark.guarantee("Hours and energy on a model card add up over all starts.")
def test_hours_and_energy_add_up_over_all_starts(run_dir: Path) -> None:
    cost = read_history(run_dir).cost
    assert (cost.hours, cost.process_hours) == (1.5, 0.5 * 8 + 1.0 * 4)
    assert cost.kilowatt_hours == 1.0 + 4.0
    text = card_of(run_dir).text
    assert "- Time: 1.5 hours, 8 GPU hours," in text
    assert "- Energy of the GPUs: 5 kWh" in text
    assert "- Machine: 4 x NVIDIA H200; 2 starts." in text
    assert "- Anomalies: 3 loss spikes." in text


@pytest.mark.guarantee("A model card omits what was not measured.")
def test_what_was_not_measured_is_not_told(run_dir: Path) -> None:
    bare = [{"step": 1, "loss": 9.0, "tokens": 512}]
    with jsonlines.open(run_dir / "metrics.jsonl", "w") as writer:
        writer.write_all(bare)
    cost = read_history(run_dir).cost
    assert (cost.hours, cost.process_hours, cost.kilowatt_hours) == (None, None, None)
    card = card_of(run_dir, replace(FACTS, step=1))
    assert "The model has not been evaluated yet." in card.text
    assert "This is step 1 of 40: training is not finished." in card.text
    with jsonlines.open(run_dir / "metrics.jsonl", "w") as writer:
        writer.write_all([*bare, {"step": 1, "event": "target reached", "target_loss": 9.5, "mean_loss": 9.0}])
    assert "Training is finished, after 1 steps." in card_of(run_dir, replace(FACTS, step=1)).text
    assert card.data.eval_results is None
    assert not any(word in card.text for word in ("hours", "kWh", "Anomalies", "curves.png"))


def test_a_model_that_was_not_exported_is_not_opened(run_dir: Path) -> None:
    assert 'pipeline("text-generation", model="alice/model")' in card_of(run_dir).text
    write_card(run_dir, read_history(run_dir), FACTS, location=None)
    text = ModelCard.load(run_dir / "README.md").text
    assert "The model was not exported." in text
    assert "pipeline(" not in text


def test_the_metadata_are_the_figures_of_the_newest_evaluations(run_dir: Path) -> None:
    card = card_of(run_dir)
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert found == {
        ("validation", "loss"): 5.5,
        ("validation", "perplexity"): 244.7,
        ("validation", "accuracy"): 0.3,
        ("validation", "bits_per_byte"): 1.9,
        ("test", "loss"): 5.75,
        ("test", "accuracy"): 0.28,
    }
    assert card.data.datasets == ["alice/blocks"]
    assert {result.dataset_revision for result in card.data.eval_results} == {"c0ffee"}
    assert (card.data.license, card.data.base_model) == (None, None)
    assert "| validation | 40 | 5.5000 | 244.70 | 30.0% | 1.900 |" in card.text
    assert "| test, news | 40 | 5.7000 |  |  |  |" in card.text
    assert "trained from random weights on 20,480 tokens, 1.25 epochs" in card.text
    assert "It may reproduce text seen in several epochs." in card.text
    assert "https://huggingface.co/datasets/alice/blocks) at commit `c0ffee`" in card.text

    local = replace(FACTS, license_name="apache-2.0", data=[replace(DATA, name="/data/my blocks", commit=None)])
    card = card_of(run_dir, local)
    assert (card.data.license, card.data.datasets) == ("apache-2.0", None)
    assert {result.dataset_type for result in card.data.eval_results} == {"data-my-blocks"}


def test_a_card_on_the_way_knows_nothing_of_later_steps(run_dir: Path) -> None:
    (run_dir / "curves.png").write_bytes(b"a picture")
    folder = run_dir / "model"
    folder.mkdir()
    card = card_of(run_dir, replace(FACTS, step=20), folder)
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [
        ("loss", 6.0),
        ("perplexity", 403.0),
        ("accuracy", 0.25),
    ]
    assert "- Time: 0.5 hours, 4 GPU hours," in card.text
    assert "![loss](curves.png)" in card.text
    assert (folder / "curves.png").read_bytes() == b"a picture"


def test_a_fine_tuned_model_says_what_it_began_with(run_dir: Path) -> None:
    data = replace(DATA, conversations={"alpaca": 100, "messages": 26})
    card = card_of(run_dir, replace(FACTS, parent=PARENT, data=[data]))
    assert "fine-tuned from `runs/first/model` on 20,480 tokens" in card.text
    assert '("text-generation", model="alice/model")([{"role": "user", "content":' in card.text
    assert not any(
        words in card.text for words in ("random weights", "weights of another model", "was not trained to follow")
    )
    assert card.data.tags == ["llama", "fine-tuned", "deepspeed"]
    assert "`python3 generate.py --model alice/model --chat`" in card.text
    assert "Its license is not set yet: `finetune.py --license`." in card.text
    assert "120 conversations and 40,000 tokens to train on" in card.text
    assert "  - formats of the conversations, all splits: alpaca 100, messages 26.\n" in card.text


def test_a_model_that_was_trained_on_names_its_parent_with_hash_and_license(run_dir: Path) -> None:
    card = card_of(run_dir, replace(FACTS, parent=replace(PARENT, is_tuned=False)))
    assert "trained on from `runs/first/model` on 20,480 tokens" in card.text
    assert (
        "- Started from the weights of `runs/first/model`; xxh3 of its files: `model.safetensors` `0abc`." in card.text
    )
    assert "- The license of `runs/first/model` is `llama2`, by its own card" in card.text
    assert '("text-generation", model="alice/model")("I wanna go"' in card.text
    assert not any(
        words in card.text for words in ("random weights", "weights of another model", "tokens per parameter")
    )
    assert card.data.tags == ["llama", "pretraining", "continued-pretraining", "deepspeed"]


def test_the_card_of_a_parent_is_read_as_it_is_written(run_dir: Path, tmp_path: Path) -> None:
    card_of(run_dir, replace(FACTS, license_name="apache-2.0"))
    found = read_parent_card(run_dir)
    assert found == ParentCard("apache-2.0", read_history(run_dir).evaluations["eval"]["eval_loss"])
    assert read_parent_card(tmp_path / "nothing/model") == ParentCard()
    for text in ("no metadata", "---\n[1\n---\n", "---\n- 1\n---\n", "---\nlicense: [a]\nmodel-index: 7\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert read_parent_card(tmp_path) == ParentCard()


def test_names_of_others_are_no_markdown_and_no_path_is_published(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand in the log, in the command and in flags; paths are relative to the working directory at most."""
    monkeypatch.chdir(run_dir.parent)
    evil = "<script>x</script>|[x](http://a.b)`c`\n# forged"
    command = f"deepspeed --num_gpus=2 pretrain.py --dataset 'a=/home/jane doe/blocks:1' --run_name '``` {evil}'"
    record = RUN_RECORD | {"command": f"{command} --output_dir {run_dir}"}
    (run_dir / "run.json").write_text(json.dumps(record))
    with jsonlines.open(run_dir / "metrics.jsonl", "w") as writer:
        writer.write({"step": 40, "eval_loss": 5.5, f"eval_loss/{evil}": 5.0})
        writer.write({"step": 40, "loss": 5.0, "tokens": 512, f"tokens/{evil}": 7})
    data = replace(DATA, name=evil, commit=None, files=[])
    facts = replace(
        FACTS,
        name=evil,
        data=[data, replace(data, commit="c0ffee")],
        parent=replace(PARENT, name=evil, hashes={evil: "0"}),
    )
    write_card(run_dir, read_history(run_dir), facts, location=f"runs/{evil}")
    card = ModelCard.load(run_dir / "README.md")
    assert card.data.model_name == evil
    assert "jane" not in card.text
    assert str(run_dir) not in card.text
    assert f"--output_dir {run_dir.name}" in card.text
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.text)
    assert not [token.type for token in tokens if token.type == "html_block"]
    inner = [one for token in tokens for one in token.children or ()]
    assert not [one.type for one in inner if one.type in ("html_inline", "image")]
    assert {one.attrs["href"].partition("/datasets/")[0] for one in inner if one.type == "link_open"} == {
        "https://huggingface.co"
    }
    titles = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    assert len(titles) == 1 + 5, titles
    rows = [token for token in tokens if token.type in ("th_open", "td_open")]
    assert len(rows) == 6 * 3, "a name makes a column"
    (code, launch) = [token for token in tokens if token.type == "fence"]
    compile(code.content, "usage", "exec")
    assert launch.info == "bash"


def test_the_last_scores_of_tasks_are_on_the_card(run_dir: Path) -> None:
    assert "no benchmark" in card_of(run_dir).text
    scores = {
        "task/arc/acc": 0.625,
        "task/arc/acc_stderr": 0.0151,
        "task/arc/chance": 0.25,
        "task/arc/num_examples": 1024,
    }
    scores |= {"task/lam/acc": "nan", "task_seconds": 3.5}
    changed = [{**record, **scores} if record.get("eval_loss") == 5.5 else record for record in RECORDS]
    with jsonlines.open(run_dir / "metrics.jsonl", "w") as writer:
        writer.write_all(changed)
    text = card_of(run_dir).text
    assert "| arc | acc 62.5% ± 1.5%, chance 25.0%, 1,024 examples |\n| lam | acc nan |\n" in text
    assert "the tasks below: no test of bias or privacy" in text


def test_the_card_of_phases_claims_no_learning_rate_of_the_whole_run(run_dir: Path) -> None:
    """The first schedule ends at step 40, and another one follows."""
    assert "- Learning rate: 3.00e-04 after 2 steps, cosine to 3.00e-05 at step 40." in card_of(run_dir).text
    schedule = RUN_RECORD["schedule"]
    later = {**schedule, "shape": "linear", "minimum": 0.0, "num_steps": 60, "first_step": 40, "initial": 3e-5}
    record = {**RUN_RECORD, "schedule": {**schedule, "later": [later]}}
    (run_dir / "run.json").write_text(json.dumps(record))
    phase = "phase b: steps 41 to 60, 10 tokens, learning rate 3.00e-05 to 0.00e+00 (linear)"
    text = card_of(run_dir, replace(FACTS, num_steps=60, phases=[phase])).text
    assert "- Learning rate:" not in text
    assert f"- {phase}" in text
