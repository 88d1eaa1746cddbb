"""Tasks and samples while training: they change nothing in the run, and the exported model has the same."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.conftest import PROJECT_DIR, assert_one_error
from tests.programs.launching import BLOCK_LENGTH, events, figures, records, train, try_to_train
from tests.programs.monitor.test_samples import SAMPLES, samples, written_by
from tests.rounding import loss_rounding
from tools.evaluate import main as evaluate

pytestmark = pytest.mark.launch

FLAGS = ["--model_overrides", "hidden_size=32", "intermediate_size=64", "num_hidden_layers=2", "num_attention_heads=4"]
FLAGS += ["num_key_value_heads=2", "max_position_embeddings=128", "attention_dropout=0.1"]
FLAGS += ["--save_steps", 2, "--eval_steps", 2, "--eval_on_start", "true", "--save_total_limit", 0, "--max_steps", 4]
SHORT = ["--max_steps", 1, "--save_strategy", "no", "--export", "false"]
SAMPLING = [*SAMPLES, "--sample_steps", 2]
STORIES = [
    json.loads(line)["text"] for line in (PROJECT_DIR / "data/sample/news.jsonl").read_text("utf-8").splitlines()
]
BROKEN = "tests/programs/drivers/sampling_run.py"
ROUNDING = loss_rounding(128)


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three choices of different lengths after the beginning of a story; the next word of it, also of long ones."""
    folder = tmp_path_factory.mktemp("tasks")
    choices, cloze = [], []
    for number, story in enumerate(STORIES[:21]):
        words, length = story.split(), 3 + 2 * number
        others = [" ".join(STORIES[50 + number].split()[:size]) for size in (2, 9)]
        answer = number % 3
        right = " ".join(words[length : length + 5])
        choices.append(
            {"context": " ".join(words[:length]), "choices": [*others[:answer], right, *others[answer:]]}
            | {"answer": answer}
        )
        cloze.append({"context": " ".join(words[: 8 * number]), "completion": words[8 * number]})
    return {"stories": write(folder / "stories.jsonl", choices), "words": write(folder / "next.jsonl", cloze)}


def task_flags(tasks: dict[str, Path], flag: str = "--eval_tasks") -> list[object]:
    return [flag, *(f"{name}={path}" for name, path in tasks.items())]


def scores(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, value in record.items():
        if name.startswith("task/"):
            _, task, metric = name.split("/")
            found.setdefault(task, {})[metric] = value
    return found


def scores_by_step(run_dir: Path) -> dict[int, dict[str, dict[str, float]]]:
    """Those of each evaluation, which must be there once."""
    found = records(run_dir, "eval_loss")
    assert len({record["step"] for record in found}) == len(found)
    return {record["step"]: scores(record) for record in found}


def scores_of(model: Path, tasks: dict[str, Path], output: Path) -> dict[str, dict[str, float]]:
    evaluate([str(word) for word in (model, *task_flags(tasks, "--tasks"), "--output", output)])
    return json.loads(output.read_text())["tasks"]


def assert_same(ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]) -> None:
    """The same decisions; likelihoods differ by rounding."""
    assert ours.keys() == theirs.keys()
    for task, metrics in ours.items():
        assert metrics.keys() == theirs[task].keys()
        for name, value in metrics.items():
            # A perplexity is exp of a mean of up to 150 nats.
            rounding = {"bits_per_byte": ROUNDING, "perplexity": 150 * ROUNDING}.get(name, 1e-12)
            assert value == pytest.approx(theirs[task][name], rel=rounding), (task, name)


@torch.no_grad()
def likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, context: str, continuation: str
) -> tuple[float, bool]:
    """Log-likelihood of a continuation, and whether it is greedy, by transformers on this text alone."""
    ids = tokenizer(f"{context} {continuation}" if context else continuation)["input_ids"]
    num_context = len(tokenizer(context)["input_ids"])
    if not context:
        ids, num_context = [tokenizer.eos_token_id, *ids], 1
    num_predicted, ids = len(ids) - num_context, torch.tensor([ids[-129:]])
    rows = model(input_ids=ids[:, :-1]).logits[0, -num_predicted:].double().log_softmax(-1)
    targets = ids[0, -num_predicted:]
    return rows.gather(1, targets[:, None]).sum().item(), bool((rows.argmax(1) == targets).all())


def expected_scores(model_dir: Path, tasks: dict[str, Path]) -> dict[str, dict[str, float]]:
    """By the definitions, and with no decision that rounding could turn."""
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    lines = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in tasks.items()}
    hits, normalized_hits, right, num_bytes = 0, 0, 0.0, 0
    for line in lines["stories"]:
        found = np.array([likelihood(model, tokenizer, line["context"], choice)[0] for choice in line["choices"]])
        for values in (found, found / [len(choice) for choice in line["choices"]]):
            first, second = sorted(values)[:-3:-1]
            assert first - second > -2 * ROUNDING * first, "too close to call: choose other texts"
        hits += int(np.argmax(found) == line["answer"])
        normalized_hits += int(np.argmax(found / [len(choice) for choice in line["choices"]]) == line["answer"])
        right += found[line["answer"]]
        num_bytes += len(line["choices"][line["answer"]].encode())
    n = len(lines["stories"])
    shares = {"acc": hits / n, "acc_norm": normalized_hits / n}
    errors = {f"{name}_stderr": math.sqrt(p * (1 - p) / (n - 1)) for name, p in shares.items()}
    stories = {**shares, **errors, "chance": 1 / 3, "bits_per_byte": -right / math.log(2) / num_bytes}
    pairs = [likelihood(model, tokenizer, line["context"], line["completion"]) for line in lines["words"]]
    total, p = sum(found for found, _ in pairs), sum(is_greedy for _, is_greedy in pairs) / len(pairs)
    num_bytes = sum(len(line["completion"].encode()) for line in lines["words"])
    words = {"acc": p, "acc_stderr": math.sqrt(p * (1 - p) / (len(pairs) - 1)), "perplexity": math.exp(-total / n)}
    words |= {"bits_per_byte": -total / math.log(2) / num_bytes}
    return {name: {**found, "num_examples": n} for name, found in (("stories", stories), ("words", words))}


@pytest.fixture(scope="module")
def plain_run(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    train("2 ranks", sample_store, run_dir, *FLAGS)
    return run_dir


@pytest.fixture(scope="module")
def scored_run(
    sample_store: Path, tasks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run with tasks and samples, and its log."""
    run_dir = tmp_path_factory.mktemp("scored") / "run"
    done = train("2 ranks", sample_store, run_dir, *FLAGS, *task_flags(tasks), *SAMPLING)
    return run_dir, done.stderr


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert figures(ours) == figures(theirs)
    losses = [[(record["step"], record["eval_loss"]) for record in records(run, "eval_loss")] for run in (ours, theirs)]
    assert losses[0] == losses[1]
    assert (ours / "model/model.safetensors").read_bytes() == (theirs / "model/model.safetensors").read_bytes()


@pytest.mark.guarantee("Downstream tasks during training change no loss, gradient norm or weight by a bit.")
def test_tasks_change_nothing_in_the_run(scored_run: tuple[Path, str], plain_run: Path) -> None:
    """In a run with dropout, whose random state shows in every loss."""
    run_dir, log = scored_run
    assert_same_run(run_dir, plain_run)
    assert list(scores_by_step(run_dir)) == [0, 2, 4]
    assert log.count("task stories acc ") == log.count("task words   acc ") == 3
    assert "texts are longer than the model's 128 positions, and lose the beginning of their context" in log
    (summary,) = events(run_dir, "summary")
    seconds = [record["task_seconds"] for record in records(run_dir, "eval_loss")]
    assert 0 < sum(seconds) < summary["evaluation_seconds"]
    assert "| stories | acc " in (run_dir / "README.md").read_text()
    tensorboard = b"".join(path.read_bytes() for path in run_dir.glob("tensorboard/events*"))
    assert b"task/stories/acc_norm" in tensorboard


@pytest.mark.guarantee(
    "Samples change nothing in a run, appear once after a resume, and are what the exported model writes."
)
def test_samples_change_nothing_and_are_there_once(
    scored_run: tuple[Path, str], plain_run: Path, sample_store: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    """In a run with dropout, whose random state shows in every loss; nor do they, or tasks, when steps are repeated."""
    run_dir, log = scored_run
    made = samples(run_dir)
    assert list(made) == [2, 4]
    assert made[2] != made[4]
    assert all(sample["continuation"] for row in made.values() for sample in row)
    assert log.count('  sample  "The"') == 2
    assert_same_run(run_dir, plain_run)
    tensorboard = b"".join(path.read_bytes() for path in run_dir.glob("tensorboard/events*"))
    assert b"sample/I wanna go to the council" in tensorboard
    assert [sample["continuation"] for sample in made[4]] == written_by(run_dir / "model", num_tokens=12)

    resumed = shutil.copytree(run_dir, tmp_path / "run")
    for name in ("checkpoint-4", "model"):
        shutil.rmtree(resumed / name)
    train("2 ranks", sample_store, resumed, *FLAGS, *task_flags(tasks), *SAMPLING)
    assert samples(resumed) == made
    assert scores_by_step(resumed) == scores_by_step(run_dir)
    assert_same_run(resumed, run_dir)


@pytest.mark.guarantee(
    "Scores of tasks during training under ZeRO-3 are those of tools.evaluate on the checkpoint of that step, and of "
    "transformers on each text alone, to rounding."
)
def test_the_exported_model_has_the_scores_of_the_run(
    scored_run: tuple[Path, str], tasks: dict[str, Path], tmp_path: Path
) -> None:
    run_dir, _ = scored_run
    found = scores_by_step(run_dir)
    for step, model in {2: "checkpoint-2", 4: "model"}.items():
        assert_same(scores_of(run_dir / model, tasks, tmp_path / f"{step}.json"), found[step])
    assert found[2] != found[4]
    assert_same(found[4], expected_scores(run_dir / "model", tasks))


@pytest.mark.guarantee("Two processes score tasks as one does.")
@pytest.mark.parametrize(
    ("launcher", "flags"),
    [
        ("1 rank", []),
        pytest.param("2 ranks", ["--document_masking", "--gradient_checkpointing"], marks=pytest.mark.long),
        pytest.param(
            *("2 ranks", ["--sequence_parallel_size", 2, "--loss_tiles", 3, "--mlp_tiles", 2]), marks=pytest.mark.long
        ),
        pytest.param("2 ranks", ["--sequence_parallel_size", 2, "--document_masking"], marks=pytest.mark.long),
    ],
    ids=str,
)
def test_scores_do_not_depend_on_how_a_run_computes(
    launcher: str,
    flags: list[object],
    scored_run: tuple[Path, str],
    sample_store: Path,
    tasks: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Before the first step, where all runs have the same weights."""
    dropout_free = [word for word in FLAGS if word != "attention_dropout=0.1"]
    train(launcher, sample_store, tmp_path / "run", *dropout_free, *task_flags(tasks), *flags, *SHORT)
    assert_same(scores_by_step(tmp_path / "run")[0], scores_by_step(scored_run[0])[0])


@pytest.mark.long  # steps that are repeated: test_samples_change_nothing_and_are_there_once; stops: tests/faults
def test_tasks_of_a_stopped_run_are_scored_once(
    scored_run: tuple[Path, str], sample_store: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    """A stop in the midst of the tasks: the resumed run makes the evaluation of that step, and no step twice."""
    run_dir, flags = tmp_path / "run", [*FLAGS, *task_flags(tasks), "--eval_on_start", "false"]
    expected = {step: found for step, found in scores_by_step(scored_run[0]).items() if step > 0}
    num_tokens = records(scored_run[0], "eval_loss")[0]["eval_num_tokens"]
    num_batches = math.ceil(num_tokens / (BLOCK_LENGTH - 1) / 16)  # of 8 blocks per process
    env = {"DO": "kill(me, SIGTERM)", "AT": f"batch:{num_batches + 2}"}  # the second one of tasks
    options: dict[str, Any] = {"script": "tests/faults/drivers/interrupted_run.py"}
    stopped = try_to_train("2 ranks", sample_store, run_dir, *flags, env=env, **options)
    assert stopped.returncode == 75, stopped.output[-3000:]
    assert scores_by_step(run_dir) == {}
    assert (run_dir / "checkpoint-2").is_dir()
    train("2 ranks", sample_store, run_dir, *flags)
    assert scores_by_step(run_dir) == expected
    assert figures(run_dir) == figures(scored_run[0])


def test_tasks_and_samples_that_fail_end_no_run(
    sample_store: Path, plain_run: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    """Where all processes fail alike, in the midst of a forward."""
    flags, env = [*FLAGS, *task_flags(tasks), *SAMPLING], {"BROKEN_RANKS": "0 1"}
    done = train("2 ranks", sample_store, tmp_path / "all", *flags, env=env, script=BROKEN)
    for step, what in ((0, "--eval_tasks"), (2, "sampling")):
        assert f"step {step}: {what} failed (no memory left) and is disabled; training continues" in done.stderr
    assert scores_by_step(tmp_path / "all") == {0: {}, 2: {}, 4: {}}
    assert samples(tmp_path / "all") == {}
    assert_same_run(tmp_path / "all", plain_run)


@pytest.mark.long  # of samples: test_a_run_whose_samples_fail_on_one_process_ends
def test_a_run_whose_tasks_fail_on_one_process_ends(sample_store: Path, tasks: dict[str, Path], tmp_path: Path) -> None:
    """It does not hang."""
    flags, env = [*FLAGS, *task_flags(tasks)], {"BROKEN_RANKS": "1"}
    done = try_to_train("2 ranks", sample_store, tmp_path / "run", *flags, env=env, script=BROKEN)
    assert done.returncode != 0
    assert "RuntimeError: no memory left" in done.stderr


def test_tasks_that_cannot_be_scored_are_refused(sample_store: Path, tmp_path: Path) -> None:
    long = write(tmp_path / "long.jsonl", [{"context": "a", "completion": " ".join(STORIES[0].split() * 3)}])
    done = try_to_train("2 ranks", sample_store, tmp_path / "run", "--eval_tasks", long)
    assert_one_error(done, "--eval_tasks long: ", "tokens; use 128 or fewer")
    assert not (tmp_path / "run/metrics.jsonl").exists()
