import time

import pytest

from pretraining.runs.log_lines import LINE_COLUMNS, log_lines, summary_lines

NOON = time.mktime((2027, 3, 10, 12, 0, 0, 0, 0, -1))
RECORD = {"step": 40, "loss": 2.5, "learning_rate": 3e-4, "grad_norm": 0.7, "seconds_left": 3900.0}
RECORD |= {"tokens_per_second_per_gpu": 14000.4, "mfu": 0.6512, "mfu_causal": 0.6011, "smoothed_loss": 2.6}


def test_the_line_of_a_step_says_what_people_look_for() -> None:
    assert log_lines(RECORD, max_steps=1000, now=NOON) == [
        "step   40/1000  loss 2.5000 (2.6000)  1 h 05 min left (13:05)  14,000 tokens/s/GPU  lr 3.00e-04  "
        "grad norm 0.700  MFU 65.1 % (causal 60.1 %)"
    ]


def test_an_end_on_another_day_has_its_date() -> None:
    (line,) = log_lines({**RECORD, "seconds_left": 3 * 86400}, max_steps=1000, now=NOON)
    assert "  3 d 00 h left (Mar 13 12:00)  " in line
    (line,) = log_lines({**RECORD, "seconds_left": 0}, max_steps=1000, now=NOON)
    assert "  0 s left  " in line


def test_a_line_with_all_there_is_has_a_line_s_width() -> None:
    usual = {**RECORD, "step": 481_203, "seconds_left": 500_000.0, "peak_memory_bytes": 71.2e9, "accuracy": 0.421}
    usual |= {"gpu_utilization": 0.98, "gpu_power_watts": 5512.0, "tflops_per_second_per_gpu": 498.1, "epoch": 0.71}
    usual |= {"perplexity": 12.2, "tokens": 5_000_000_000, "overall_tokens_per_second_per_gpu": 13_990.0}
    (line,) = log_lines(usual, max_steps=500_000, now=NOON)
    assert 120 < len(line) <= LINE_COLUMNS
    for word in ("loss 2.5000 (2.6000)", "left (Mar 16", "tokens/s/GPU", "lr ", "grad norm", "MFU 65.1 % (causal 60.1"):
        assert word in line


def test_what_is_not_known_is_not_said() -> None:
    (line,) = log_lines({"step": 1, "loss": float("nan"), "learning_rate": 1e-3}, max_steps=9, now=NOON)
    assert line == "step 1/9  loss nan  lr 1.00e-03"
    assert log_lines({"step": 40, "train_runtime": 3.0}, max_steps=40, now=NOON) == []


def test_memory_says_whose_it_is_and_time_what_took_it() -> None:
    parts = {"forward_backward_seconds": 1.5, "optimizer_seconds": 0.0, "save_seconds": 0.0, "evaluation_seconds": 0.0}
    known = {"step": 1, "loss": 2.0, "host_memory_bytes": 812e6, "interval_seconds": 2.0, "data_seconds": 0.5, **parts}
    known["other_seconds"] = 0.0
    (line,) = log_lines({**known, "blocks_per_second": 12.34}, max_steps=9, now=NOON)
    assert line == "step 1/9  loss 2.0000  812 MB host  12.3 blocks/s  time: data 25 %, forward+backward 75 %"
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
        "step 40/40  validation loss 2.0000  perplexity 7.39  accuracy 25.0 %  0.800 bits/byte",
        "step 40/40    news     loss 2.0000  perplexity 7.39  accuracy 25.0 %  0.800 bits/byte",
    ]


def test_a_summary_says_speed_memory_and_where_the_time_went() -> None:
    parts = {"data": 2.0, "forward_backward": 80.0, "optimizer": 10.0, "save": 5.0, "evaluation": 2.5, "other": 0.5}
    summary = {"num_steps": 20, "total_seconds": 100.0, **{f"{part}_seconds": value for part, value in parts.items()}}
    summary |= {"overall_tokens_per_second_per_gpu": 8600.4, "blocks_per_second": 16.8, "peak_memory_bytes": 61.24e9}
    summary |= {"tflops_per_second_per_gpu": 396.4, "mfu": 0.4006, "mfu_causal": 0.3701, "energy_joules": 7.2e6}
    assert list(summary_lines(summary)) == [
        "time: 20 steps in 1 min 40 s: data 2.0 %, forward and backward 80.0 %, optimizer 10.0 %, save 5.0 %, "
        "evaluation 2.5 %, other 0.5 %",
        "speed: 8,600 tokens/s/GPU, 16.8 blocks/s, 396 TFLOP/s/GPU, MFU 40.1 % (causal 37.0 %), without the first "
        "interval of the log, saves and evaluations",
        "memory: 61.2 GB on the fullest GPU at its peak",
        "energy of the GPUs: 2 kWh",
    ]
