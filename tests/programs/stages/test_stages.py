"""ZeRO-1 and ZeRO-2 train what ZeRO-3 trains: losses and gradient norms of 20 steps, whatever number of micro steps.

Releases of DeepSpeed from 0.17.6 to 0.19.3 lost gradients below stage 3 without a word, three times. Each of these
faults, planted again, is seen here.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import PROJECT_DIR, TINY_MODEL
from tests.programs.launching import GROUPS, figures, group_norms, records, train
from tests.rounding import STAGE_ROUNDING, assert_same_stages, sum_rounding

pytestmark = pytest.mark.launch

STEPS = 20  # in bf16 and of the variants six, in which a gradient that is lost shows as well
FEW_STEPS = 6
# Blocks of one token sequence each: with as many micro steps in both, the same products. Gradients are clipped in each
# step (their norms are 0.7 and more), and embeddings and head are one weight, which is used twice.
FLAGS = ["--eval_strategy", "no", "--save_strategy", "no", "--per_device_train_batch_size", 1, "--max_grad_norm", 0.5]
FLAGS += ["--model_overrides", *TINY_MODEL, "tie_word_embeddings=true"]
FLAGS += ["--lr_scheduler_type", "constant", "--warmup_steps", 0, "--learning_rate", "1e-3"]
TIED_GROUPS = [group for group in GROUPS if group != "head"]
NUM_PARAMETERS = 20  # embeddings, the last norm, and nine of each of two layers
CONFIGS = {1: "ds_config_zero1.json", 2: "ds_config_zero2.json", 3: "ds_config.json"}
OFFLOADED = {1: "ds_config_zero1_offload_optimizer.json", 2: "ds_config_zero2_offload_optimizer.json"}

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a stage with as many micro steps, in a precision; each is made once."""
    made: dict[tuple[object, ...], Path] = {}

    def run(stage: int, micro_steps: int, precision: str = "fp32") -> Path:
        key, num_steps = (stage, micro_steps, precision), STEPS if precision == "fp32" else FEW_STEPS
        if key not in made:
            made[key] = tmp_path_factory.mktemp("stages") / "run"
            flags = ["--deepspeed", CONFIGS[stage], "--bf16", str(precision == "bf16").lower()]
            flags += [*of_micro_steps(micro_steps), "--max_steps", num_steps, "--export", "false"]
            train("2 ranks", sample_store, made[key], *FLAGS, *flags)
        return made[key]

    return run


def of_micro_steps(number: int, *, num_processes: int = 2) -> list[object]:
    return ["--global_batch_tokens", 64 * number * num_processes]


def assert_same_run(ours: Path, theirs: Path, precision: str = "fp32") -> None:
    """Losses and norms of each step, and the norms by group of parameters, which sum to them."""
    found = figures(ours)
    assert_same_stages(found, figures(theirs)[: len(found)], precision)
    by_group, expected = np.array(group_norms(ours, TIED_GROUPS)), np.array(group_norms(theirs, TIED_GROUPS))
    np.testing.assert_allclose(by_group, expected[: len(found)], rtol=STAGE_ROUNDING[precision][1])
    totals = np.sqrt(np.square(by_group).sum(axis=1))
    np.testing.assert_allclose(totals, [norm for _, norm in found], rtol=sum_rounding(NUM_PARAMETERS))


# Of one micro step, of three and of four: what was ever lost is the last of them or those before, which three have.
OTHERS = [pytest.param(stage, number, marks=pytest.mark.long) for number in (1, 4) for stage in (1, 2)]


# In fp32 both stages have one optimizer of DeepSpeed, of which ZeRO-2 uses more; in bf16 ZeRO-1 has another. A run in
# ZeRO-1 and fp32 is also resumed by test_a_run_goes_on_in_any_stage, one in ZeRO-2 and bf16 is in
# test_a_step_with_a_nan_is_skipped_in_every_stage.
@pytest.mark.guarantee("ZeRO-1 and ZeRO-2 train like ZeRO-3: losses and gradient norms to 1e-5 over 20 steps in fp32.")
@pytest.mark.parametrize(("stage", "micro_steps"), [(2, 3), pytest.param(1, 3, marks=pytest.mark.long), *OTHERS])
def test_the_lower_stages_train_what_stage_3_trains(stage: int, micro_steps: int, trained: Run) -> None:
    ours, theirs = trained(stage, micro_steps), trained(3, micro_steps)
    assert_same_run(ours, theirs)
    found = figures(ours)
    assert min(norm for _, norm in found) > 0.5, "each step is clipped"
    assert found[-1][0] < found[0][0] - 0.2, "it learns"


@pytest.mark.long  # held by test_a_step_with_a_nan_is_skipped_in_every_stage, without the norms by group
@pytest.mark.parametrize("micro_steps", [1, 3, 4])
@pytest.mark.parametrize("stage", [1, 2])
def test_in_bf16_they_are_off_by_roundings(stage: int, micro_steps: int, trained: Run) -> None:
    """Only here ZeRO-1 is DeepSpeed's BF16_Optimizer, which reduces fp32 sums once per step."""
    assert_same_run(trained(stage, micro_steps, "bf16"), trained(3, micro_steps, "bf16"), "bf16")


# An offloaded ZeRO-2 is compared with ZeRO-3 by test_a_step_with_a_nan_is_skipped_in_every_stage as well.
@pytest.mark.long
@pytest.mark.parametrize("stage", [1, 2])
def test_an_offloaded_optimizer_trains_the_same(stage: int, trained: Run, sample_store: Path, tmp_path: Path) -> None:
    """By torch's AdamW, as everywhere: nothing is compiled."""
    flags = [*FLAGS, *of_micro_steps(3), "--max_steps", FEW_STEPS, "--export", "false"]
    flags += ["--deepspeed", OFFLOADED[stage]]
    train("2 ranks", sample_store, tmp_path / "run", *flags, env={"CXX": "/no/compiler"})
    assert_same_run(tmp_path / "run", trained(stage, 3))


@pytest.mark.long  # held by test_a_run_goes_on_in_any_stage
@pytest.mark.parametrize("stage", [1, 2])
def test_one_process_trains_what_two_train(stage: int, trained: Run, sample_store: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, *of_micro_steps(6, num_processes=1), "--max_steps", FEW_STEPS, "--export", "false"]
    train("1 rank", sample_store, tmp_path / "run", *flags, "--deepspeed", CONFIGS[stage])
    assert_same_run(tmp_path / "run", trained(3, 3))


# One that the quick comparison above must see; the others are of its kind.
FAULTS = [("last", 1), ("last", 2), ("second use", 2)]


@pytest.mark.parametrize(
    ("fault", "stage"), [("earlier", 2), *(pytest.param(*which, marks=pytest.mark.long) for which in FAULTS)]
)
def test_what_releases_of_deepspeed_have_lost_is_seen(
    fault: str, stage: int, trained: Run, sample_store: Path, tmp_path: Path
) -> None:
    """Three steps are enough."""
    flags = [*FLAGS, *of_micro_steps(3), "--max_steps", 3, "--export", "false", "--deepspeed", CONFIGS[stage]]
    script = "tests/programs/stages/faulty_stage_run.py"
    train("2 ranks", sample_store, tmp_path / "run", *flags, script=script, env={"FAULT": fault})
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_same_run(tmp_path / "run", trained(3, 3))
    found, right = figures(tmp_path / "run"), figures(trained(3, 3))
    assert found[0][0] == pytest.approx(right[0][0]), "the first loss cannot show it"
    assert abs(found[0][1] / right[0][1] - 1) > 0.05, "the first norm does"


def assert_opens_as_that_of_stage_3(folder: Path, other: Path) -> None:
    """The export compares itself with the model in training; here it is opened by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    weights, others = (load_file(path / "model.safetensors") for path in (folder, other))
    assert "lm_head.weight" not in weights, "it is tied"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    shapes, expected = ({name: weight.shape for name, weight in found.items()} for found in (weights, others))
    assert shapes == expected
    assert {weight.dtype for weight in weights.values()} == {weight.dtype for weight in others.values()}


# The quick one has each of DeepSpeed's optimizers: of ZeRO-3, the one of bf16 in ZeRO-1, that of ZeRO-2, and offload.
@pytest.mark.parametrize(
    ("precision", "others"),
    [
        ("bf16", [CONFIGS[1], OFFLOADED[2]]),
        pytest.param("bf16", [CONFIGS[2], OFFLOADED[1]], marks=pytest.mark.long),
        pytest.param("fp32", [CONFIGS[1], CONFIGS[2], OFFLOADED[1], OFFLOADED[2]], marks=pytest.mark.long),
    ],
)
def test_a_step_with_a_nan_is_skipped_in_every_stage(
    precision: str, others: list[str], sample_store: Path, tmp_path: Path
) -> None:
    """The next step has the same weights and none of its gradients, also where their buffers stay; others follow."""
    flags = [*FLAGS, *of_micro_steps(2), "--max_steps", FEW_STEPS, "--bf16", str(precision == "bf16").lower()]
    found = {}
    for config in (CONFIGS[3], *others):
        run_dir = tmp_path / config
        more = {"script": "tests/programs/stages/faulty_stage_run.py", "env": {"FAULT": "nan"}}
        done = train("2 ranks", sample_store, run_dir, *flags, "--deepspeed", config, **more)
        assert "warning: step 2: gradient is NaN or Inf; step skipped" in done.stderr
        logged = records(run_dir)
        assert [record["non_finite_steps"] for record in logged] == [0, *[1] * (FEW_STEPS - 1)]
        assert (logged[1]["grad_norm"], "grad_norm/norms" in logged[1]) == ("inf", config == CONFIGS[3])
        found[config] = [(record["loss"], float(record["grad_norm"])) for record in logged if record["step"] != 2]
        assert_same_stages(found[config], found[CONFIGS[3]], precision)
        if precision == "bf16":
            assert_opens_as_that_of_stage_3(run_dir / "model", tmp_path / CONFIGS[3] / "model")


@pytest.mark.long  # the sums are those of test_in_bf16_they_are_off_by_roundings, made later
def test_gradients_that_stay_until_the_step_are_the_same(trained: Run, sample_store: Path, tmp_path: Path) -> None:
    """ds_config_zero1.json frees each bf16 gradient when it is in its fp32 sum; configs of others may not."""
    config = json.loads((PROJECT_DIR / CONFIGS[1]).read_text())
    del config["bf16"]["immediate_grad_update"]
    (tmp_path / "ds.json").write_text(json.dumps(config))
    flags = [*FLAGS, *of_micro_steps(3), "--max_steps", 3, "--export", "false", "--bf16", "true"]
    train("2 ranks", sample_store, tmp_path / "run", *flags, "--deepspeed", tmp_path / "ds.json")
    assert figures(tmp_path / "run") == figures(trained(1, 3, "bf16"))[:3]


LONG_BLOCKS = [
    "--sequence_parallel_size",
    2,
    "--loss_tiles",
    3,
    "--mlp_tiles",
    5,
    "--sample_steps",
    2,
    "--sample_tokens",
    5,
]
OTHER_STEPS = ["--document_masking", "--activation_checkpointing", "--optim", "adamw_bf16"]


# Shared blocks, tiles and isolated documents in stage 2 are those of
# test_masked_documents_of_shared_blocks_train_like_those_of_one.
@pytest.mark.long
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("flags", [LONG_BLOCKS, OTHER_STEPS, [*LONG_BLOCKS, *OTHER_STEPS]])
def test_flags_that_change_the_model_or_the_step(
    stage: int, flags: list[object], sample_store: Path, tmp_path: Path
) -> None:
    common = [*FLAGS, *of_micro_steps(2), "--max_steps", 3, "--export", "false", *flags]
    for number in (stage, 3):
        train("2 ranks", sample_store, tmp_path / f"{number}", *common, "--deepspeed", CONFIGS[number])
    assert_same_run(tmp_path / f"{stage}", tmp_path / "3")
