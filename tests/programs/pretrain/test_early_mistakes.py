"""A mistake is reported before torch and the libraries above it are imported, whose import takes seconds.

What is imported does not depend on how fast or busy a machine is, as the seconds until the message do.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR, Done, needs_compiler, run, run_fine

SLOW = {"torch", "transformers", "datasets", "deepspeed", "accelerate", "pandas", "scipy"}
IMPORTED = re.compile(r"^import time:.*\| +(\S+)$", re.MULTILINE)
# Each command in a fork of a process that has imported what the programs do when they start, with packages that cannot
# be found, installed or not, and with variables; answers as JSON.
COMMANDS = """import importlib, json, os, runpy, sys, tempfile
commands, slow = json.load(sys.stdin)
for name in {words[1] if words[0] == "-m" else words[0].removesuffix(".py") for words, *_ in commands}:
    importlib.import_module(name)
assert not set(slow) & set(sys.modules)
found = []
for words, packages, variables in commands:
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if not pid:
            for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), output.fileno(), output.fileno())):
                os.dup2(file, number)
            tell = lambda event, about: event == "import" and about[0] in slow and os.write(2, b"slow import")
            sys.addaudithook(tell)
            sys.modules.update(dict.fromkeys(packages))
            os.environ.update(variables)
            sys.argv = words[words[0] == "-m":]
            if words[0] == "-m":
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(words[0], run_name="__main__")
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        output.seek(0)
        found.append((code, output.read().decode()))
print(json.dumps(found))
"""
SYNTHETIC = ["pretrain.py", "--dataset", "synthetic"]
QUICKSTART = [*SYNTHETIC, "--model", "quickstart"]
ON_STORE = ["pretrain.py", "--dataset", "STORE", "--model", "quickstart", "--global_batch_tokens", "none"]

MISTAKES = [
    (["preprocess.py", "--data_files", "nope.jsonl"], "--data_files nope.jsonl: file not found"),
    (["preprocess.py", "--tokenizer", "EMPTY"], "the folder has no tokenizer.json"),
    (["preprocess.py", "--block_length", "0"], "--block_length 0: must be in"),
    (["preprocess.py", "--recipe", "RECIPE"], "no_such_flag: unknown flag"),
    (["train_tokenizer.py", "--data_files", "nope.jsonl"], "--data_files nope.jsonl: file not found"),
    (["pretrain.py", "--modle", "x"], "--modle: unknown flag (did you mean model?)"),
    (["pretrain.py", "--recipe", "RECIPE"], "no_such_flag: unknown flag"),
    (["pretrain.py", "--learning_rate", "-1"], "--learning_rate -1: must be"),
    (["pretrain.py", "--dataset", "EMPTY"], "not a block store (manifest.json is missing)"),
    ([*SYNTHETIC, "--deepspeed", "nope.json"], "--deepspeed nope.json: cannot be read"),
    ([*SYNTHETIC, "--bf16", "--fp16"], "exclude each other"),
    ([*SYNTHETIC, "--model", "lama2_7b"], "not a preset (did you mean llama2_7b?)"),
    ([*SYNTHETIC, "--model", "EMPTY"], "the folder has no config.json"),
    ([*SYNTHETIC, "--model", "EMPTY/config.json"], "not a preset, file or folder"),
    ([*SYNTHETIC, "--model", "README.md"], "is not JSON"),
    ([*QUICKSTART, "--model_overrides", "hidden_sizes=4"], "has no field hidden_sizes (did you mean hidden_size?)"),
    ([*QUICKSTART, "--model_overrides", "hidden_size=31"], "is not a multiple of num_attention_heads 4"),
    ([*ON_STORE, "--model_overrides", "vocab_size=9"], "its vocabulary of 9 does not match"),
    ([*ON_STORE, "--global_batch_tokens", "65"], "--global_batch_tokens 65: is not a multiple of"),
    ([*ON_STORE, "--output_dir", "README.md"], "--output_dir README.md: cannot be written (README.md is not a folder)"),
    ([*ON_STORE, "--output_dir", "docs"], "--output_dir docs: holds something else"),
    ([*ON_STORE, "--resume", "EMPTY"], "checkpoint is incomplete"),
    (["finetune.py", "--model", "EMPTY", "--data_files", "README.md"], "is not a run, exported model or checkpoint"),
    ([*ON_STORE, "--eval_tasks", "nope.jsonl"], "--eval_tasks nope.jsonl: file not found"),
    ([*ON_STORE, "--eval_tasks", "data/sample/news.jsonl"], "line 1: needs one context, and choices or a completion"),
    (
        [
            *QUICKSTART,
            "--block_length",
            "64",
            "--global_batch_tokens",
            "none",
            "--eval_tasks",
            "recipes/quickstart/recall.jsonl",
        ],
        "random ids have no text",
    ),
    (
        ["finetune.py", "--model", "MODEL", "--data_files", "nope.jsonl"],
        "--data_files nope.jsonl: file not found",
    ),
    (["finetune.py", "--model", "MODEL", "--data_files", "README.md", "--output_dir", "docs"], "holds something else"),
    (["generate.py", "--model", "EMPTY"], "is not a run, exported model or checkpoint"),
    (["generate.py", "--model", "EMPTY/nope"], "is neither a folder nor a Hub id"),
    (["generate.py", "--model", "OTHER"], "is a mistral model; this suite has Llama models only"),
    (["generate.py", "--prompt_file", "nope.txt"], "--prompt_file nope.txt: cannot be read"),
    (["generate.py", "--output", "README.md"], "--output README.md: exists already"),
    (
        ["generate.py", "--stats", "--reference_files", "nope.jsonl"],
        "--reference_files nope.jsonl: file not found",
    ),
    (["generate.py", "--stats", "--blocks", "EMPTY"], "--blocks"),
    (["generate.py", "--max_new_tokens", "0"], "--max_new_tokens 0: must be in"),
    (["-m", "tools.checkpoints", "verify", "EMPTY"], "has nothing to check"),
    (["-m", "tools.compare_runs", "EMPTY", "EMPTY"], "cannot be read"),
    (["-m", "tools.evaluate", "EMPTY", "--prompts", "x"], "is not a run, exported model or checkpoint"),
    (["-m", "tools.evaluate", "EMPTY", "--data_files", "README.md"], "is not a run, exported model or checkpoint"),
    (["-m", "tools.evaluate", "MODEL", "--data_files", "nope.jsonl"], "nope.jsonl: file not found"),
    (["-m", "tools.evaluate", "MODEL", "--dataset", "EMPTY"], "not a block store"),
    (["-m", "tools.evaluate", "MODEL", "--tasks", "nope.jsonl"], "--tasks nope.jsonl: file not found"),
    (["-m", "tools.report", "EMPTY"], "cannot be read"),
    (["-m", "tools.small_world_check", "EMPTY", "--dataset", "STORE"], "is not a run, exported model or checkpoint"),
    (["-m", "tools.evaluate", "--completions", "nope.jsonl"], "cannot be read"),
    (["-m", "tools.trace", "EMPTY", "--block", "0"], "not a block store"),
    (["-m", "tools.verify", "EMPTY"], "has nothing to check"),
]
MISSING_PACKAGES = [
    (["--optim", "adamw_8bit"], "bitsandbytes", "pip install bitsandbytes"),
    (["--use_liger_kernel"], "liger_kernel", "pip install liger-kernel"),
    (["--fp8", "--compile_layers"], "torchao", "pip install -c requirements-extras.txt torchao"),
    (["--report_to", "wandb"], "wandb", "pip install wandb"),
    (["--attention_implementation", "flash_attention_2"], "flash_attn", "flash_attn is not installed"),
    (
        ["--attention_implementation", "flash_attention_3"],
        "flash_attn_interface",
        "flash_attn_interface is not installed",
    ),
]
# With flags and variables: what --cpu of accelerate sets is among them.
ENVIRONMENTS = [
    (["--compile_layers"], {"PATH": "/no/compiler"}, "there is no C++ compiler"),
    ([], {"ACCELERATE_USE_CPU": "True"}, "accelerate launch --cpu: trains without DeepSpeed"),
]
MESSAGES = [entry[-1] for entry in (*MISTAKES, *MISSING_PACKAGES, *ENVIRONMENTS)]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, sample_store: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("places")
    for name, model_type in (("MODEL", "llama"), ("OTHER", "mistral")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"model_type": model_type}))
        (folder / name / "model.safetensors").touch()
        shutil.copy(PROJECT_DIR / "data/sample/tokenizer/tokenizer.json", folder / name)
    (folder / "EMPTY").mkdir()
    (folder / "RECIPE").write_text("no_such_flag: 1\nseed: 1\n")
    return {name: str(folder / name) for name in ("MODEL", "OTHER", "EMPTY", "RECIPE")} | {"STORE": str(sample_store)}


def slow_imports(done: Done) -> set[str]:
    return SLOW & set(IMPORTED.findall(done.stderr))


@pytest.fixture(scope="module")
def answers(places: dict[str, str]) -> list[Done]:
    def named(word: str) -> str:
        return re.sub(r"^[A-Z]+(?=/|$)", lambda found: places.get(found[0], found[0]), word)

    commands = [([named(word) for word in words], [], {}) for words, _ in MISTAKES]
    commands += [([*QUICKSTART, *flags], [package, "kernels"], {}) for flags, package, _ in MISSING_PACKAGES]
    commands += [([*QUICKSTART, *flags], [], variables) for flags, variables, _ in ENVIRONMENTS]
    done = run_fine(sys.executable, "-c", COMMANDS, stdin=json.dumps([commands, sorted(SLOW)]))
    return [Done(code, "", log) for code, log in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        pytest.param(number, message, marks=needs_compiler if "torchao" in message else ())
        for number, message in enumerate(MESSAGES)
    ],
    ids=str,
)
def test_a_mistake_is_reported_before_the_slow_imports(number: int, message: str, answers: list[Done]) -> None:
    done = answers[number]
    assert done.returncode == 2, done.output[-2000:]
    assert len(done.errors) == 1
    assert message in done.errors[0]
    assert "slow import" not in done.output


def test_problems_of_different_files_are_reported_together(places: dict[str, str]) -> None:
    flags = ["--model", "quickstart", "--global_batch_tokens", "65", "--output_dir", "README.md"]
    done = run(sys.executable, "-X", "importtime", "pretrain.py", "--dataset", places["STORE"], *flags)
    assert [error.split(":")[1].split()[0] for error in done.errors] == ["--global_batch_tokens", "--output_dir"]
    assert slow_imports(done) == set()


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_what_several_machines_need_is_not_imported_on_one(name: str) -> None:
    run_fine(sys.executable, "-c", f"import sys, {name}; assert 'pretraining.training' not in sys.modules")
