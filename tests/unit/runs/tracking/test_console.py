import time
from collections.abc import Mapping
from functools import partial

import pytest

from pretraining.cli.logs import LINE_COLUMNS
from pretraining.runs.tracking import console as module
from pretraining.runs.tracking.console import summary_lines
from pretraining.system.formatting import format_bytes

log_lines = partial(module.log_lines, columns=LINE_COLUMNS)
NOON = time.mktime((2027, 3, 10, 12, 0, 0, 0, 0, -1))
RECORD = {"step": 40, "loss": 2.5, "learning_rate": 3e-4, "grad_norm": 0.7, "seconds_left": 3900.0}
RECORD |= {"tokens_per_second_per_gpu": 14000.4, "mfu": 0.6512, "mfu_causal": 0.6011, "smoothed_loss": 2.6}
RECORD["peak_memory_bytes"] = 71.2e9


def test_the_line_of_a_step_says_what_people_look_for() -> None:
    assert log_lines(RECORD, max_steps=1000, now=NOON) == [
        "step   40/1000  loss 2.5000 (2.6000)  1 h 05 min left  14,000 tokens/s/GPU  lr 3.00e-04  MFU 65.1 %  "
        "grad norm 0.700"
    ]


def test_an_end_on_another_day_has_its_date() -> None:
    (line,) = log_lines({**RECORD, "seconds_left": 3 * 86400}, max_steps=1000, now=NOON)
    assert "  3 d 00 h left  " in line
    (line,) = log_lines({**RECORD, "seconds_left": 3 * 86400}, max_steps=1000, now=NOON, columns=200)
    assert "  ends Mar 13 12:00  " in line
    (line,) = log_lines(RECORD, max_steps=1000, now=NOON, columns=200)
    assert "  ends 13:05  71.2 GB peak  causal MFU 60.1 %" in line
    (line,) = log_lines({**RECORD, "seconds_left": 0}, max_steps=1000, now=NOON, columns=200)
    assert "  0 s left  " in line
    assert "  ends " not in line


def test_a_line_with_all_there_is_has_a_line_s_width() -> None:
    usual = {**RECORD, "step": 481_203, "seconds_left": 500_000.0, "peak_memory_bytes": 71.2e9, "accuracy": 0.421}
    usual |= {"gpu_utilization": 0.98, "gpu_power_watts": 5512.0, "tflops_per_second_per_gpu": 498.1, "epoch": 0.71}
    usual |= {"perplexity": 12.2, "tokens": 5_000_000_000, "overall_tokens_per_second_per_gpu": 13_990.0}
    (line,) = log_lines(usual, max_steps=500_000, now=NOON)
    assert 100 < len(line) <= LINE_COLUMNS == 120
    for word in ("loss 2.5000 (2.6000)", "5 d 18 h left", "tokens/s/GPU", "lr ", "grad norm", "MFU 65.1 %"):
        assert word in line
    lengths = [len(*log_lines(usual, max_steps=500_000, now=NOON, columns=columns)) for columns in range(60, 300)]
    assert all(length <= columns for length, columns in zip(lengths, range(60, 300), strict=True))
    assert lengths[-1] > 250, "what a narrow line drops is in a wide one"


def test_a_speed_without_a_gpu_is_of_a_process() -> None:
    without = {name: value for name, value in RECORD.items() if name not in ("peak_memory_bytes", "mfu", "mfu_causal")}
    (line,) = log_lines(without, max_steps=1000, now=NOON)
    assert "  14,000 tokens/s per process  " in line
    speeds = {"overall_tokens_per_second_per_gpu": 86.4, "blocks_per_second": 1.0, "tflops_per_second_per_gpu": 0.1}
    lines = list(summary_lines({**summary(), **speeds}))
    assert lines[1].startswith("speed: 86 tokens/s per process, 1.0 blocks/s, 0.1 TFLOP/s per process (steps only, ")


def test_bytes_are_never_shown_as_none() -> None:
    for num_bytes in (100, 2_000, 69_000_000, 999_000_000, 10**9, 10**13):
        assert not format_bytes(num_bytes).startswith(("0 ", "0.0 "))
    assert [format_bytes(69.4e6), format_bytes(31_000)] == ["69 MB", "31 kB"]


def summary(num_steps: int = 20) -> Mapping[str, float]:
    parts = {"data": 2.0, "forward_backward": 80.0, "optimizer": 10.0, "save": 5.0, "evaluation": 2.6, "other": 0.4}
    times = {f"{part}_seconds": value for part, value in parts.items()}
    return {"num_steps": num_steps, "total_seconds": 100.0, **times}


def test_what_is_not_known_is_not_said() -> None:
    (line,) = log_lines({"step": 1, "loss": float("nan"), "learning_rate": 1e-3}, max_steps=9, now=NOON)
    assert line == "step 1/9  loss nan  lr 1.00e-03"
    assert log_lines({"step": 40, "train_runtime": 3.0}, max_steps=40, now=NOON) == []


def test_memory_says_whose_it_is_and_time_what_took_it() -> None:
    parts = {"forward_backward_seconds": 1.5, "optimizer_seconds": 0.0, "save_seconds": 0.0, "evaluation_seconds": 0.0}
    known = {"step": 1, "loss": 2.0, "host_memory_bytes": 812e6, "interval_seconds": 2.0, "data_seconds": 0.5, **parts}
    known["other_seconds"] = 0.0
    (line,) = log_lines({**known, "blocks_per_second": 12.34}, max_steps=9, now=NOON)
    assert line == "step 1/9  loss 2.0000  812 MB host  12.3 blocks/s  time: forward+backward 75 %, data 25 %"
    (line,) = log_lines({**known, "peak_memory_bytes": 71.2e9}, max_steps=9, now=NOON)
    assert "  71.2 GB peak  " in line
    (line,) = log_lines({**known, "peak_memory_bytes": 71.2e9, "gpu_memory_bytes": 75e9}, max_steps=9, now=NOON)
    assert "  71.2 GB peak (75.0 GB in use)  " in line


@pytest.mark.parametrize("name", ["non_finite_steps", "loss_scale"])
def test_faults_and_the_scale_are_said(name: str) -> None:
    (line,) = log_lines({"step": 1, "loss": 2.0, "learning_rate": 1e-3, name: 7}, max_steps=9, now=NOON)
    assert ("7 non-finite" if name == "non_finite_steps" else "scale 7") in line


def test_an_evaluation_has_its_sources_below_it() -> None:
    figures = {"eval_loss": 2.0, "eval_perplexity": 7.389, "eval_accuracy": 0.25, "eval_bits_per_byte": 0.8}
    by_source = {f"{name}/news": value for name, value in figures.items()}
    assert log_lines({"step": 40, **figures, **by_source}, max_steps=40, now=NOON) == [
        "step 40/40  validation loss 2.0000  0.800 bits/byte  perplexity 7.39  accuracy 25.0 %",
        "step 40/40    news     loss 2.0000  0.800 bits/byte  perplexity 7.39  accuracy 25.0 %",
    ]
    assert log_lines({"step": 40, **figures, **by_source}, max_steps=40, now=NOON, columns=80) == [
        "step 40/40  validation loss 2.0000  0.800 bits/byte  perplexity 7.39",
        "step 40/40    news     loss 2.0000  0.800 bits/byte  perplexity 7.39",
    ]


def test_an_evaluation_of_a_part_says_so() -> None:
    figures = {"eval_loss": 2.0, "eval_perplexity": 7.389, "eval_accuracy": 0.25, "eval_blocks": 1200}
    (line,) = log_lines({"step": 40, **figures}, max_steps=80, now=NOON)
    assert line == "step 40/80  validation, 1,200 blocks loss 2.0000  perplexity 7.39  accuracy 25.0 %"


def test_a_summary_says_speed_memory_and_where_the_time_went() -> None:
    speeds = {"overall_tokens_per_second_per_gpu": 8600.4, "blocks_per_second": 16.8, "peak_memory_bytes": 61.24e9}
    speeds |= {"tflops_per_second_per_gpu": 396.4, "mfu": 0.4006, "mfu_causal": 0.3701, "energy_joules": 7.2e6}
    assert list(summary_lines({**summary(), **speeds})) == [
        "time: 20 steps in 1 min 40 s: forward+backward 80 %, optimizer 10 %, save 5 %, evaluation 3 %, data 2 %",
        "speed: 8,600 tokens/s/GPU, 16.8 blocks/s, 396 TFLOP/s/GPU, MFU 40.1 % (causal 37.0 %) (steps only, "
        "without the first interval)",
        "memory: 61.2 GB on the fullest GPU at its peak",
        "energy of the GPUs: 2 kWh",
    ]
    assert next(iter(summary_lines(summary(num_steps=1)))).startswith("time: 1 step in ")


def test_each_task_has_a_line_below_the_evaluation() -> None:
    metrics = {"task/arc/acc": 0.625, "task/arc/acc_stderr": 0.0151, "task/arc/acc_norm": 0.5, "task/arc/chance": 0.25}
    metrics |= {"task/lambada/acc": 0.1, "task/lambada/perplexity": 1234.5, "task/lambada/num_examples": 9}
    evaluation = {"step": 40, "eval_loss": 5.5, "eval_perplexity": 244.7, "eval_accuracy": 0.3}
    _, *lines = log_lines({**evaluation, **metrics, "task_seconds": 2.5}, max_steps=1000, now=NOON)
    assert lines == [
        "step   40/1000  task arc     acc 62.5 % ± 1.5 %  acc norm 50.0 %  chance 25.0 %",
        "step   40/1000  task lambada acc 10.0 %  perplexity 1,234.50",
    ]
