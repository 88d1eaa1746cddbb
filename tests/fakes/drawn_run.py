"""A run folder with every figure and event that a log can have, without a run."""

import json
import math
from pathlib import Path

PARTS = ("forward_backward", "optimizer", "data", "save", "evaluation", "other")
SCRIPT = "</script><script>document.title = 'broken'</script><b>bold</b> & \"quoted\""


def training_record(step: int) -> dict:
    loss = 2 + 7 * math.exp(-step / 60) + 0.15 * math.sin(step * 1.7)
    parts = dict(zip(PARTS, (0.8, 0.1, 0.02, 2.0 * (step % 100 == 0), 1.0 * (step % 50 == 0), 0.03), strict=True))
    return {
        "step": step,
        "tokens": step * 4096,
        "loss": "nan" if step == 77 else loss + 3 * (step == 150),
        "smoothed_loss": 2 + 7 * math.exp(-step / 60),
        "perplexity": math.exp(loss),
        "accuracy": 0.4 - 0.3 * math.exp(-step / 80),
        "learning_rate": 3e-4 * min(step / 20, 1 - 0.9 * step / 400),
        "grad_norm": "inf" if step == 77 else 0.5 + 0.2 * math.cos(step),
        "non_finite_steps": int(step >= 77),
        "spikes": int(step >= 150),
        "tokens_per_second_per_gpu": 12_000 + 300 * math.sin(step),
        "overall_tokens_per_second_per_gpu": 12_000.0,
        "tflops_per_second_per_gpu": 415.5,
        "mfu": 0.42,
        "mfu_causal": 0.39,
        "peak_memory_bytes": 61_000_000_000,
        "gpu_memory_bytes": 70_000_000_000,
        "gpu_utilization": 0.97,
        "gpu_power_watts": 5200.0 + step,
        "energy_joules": 5200.0 * (step if step <= 200 else step - 200),
        "host_memory_bytes": 9_000_000_000,
        "interval_seconds": sum(parts.values()),
        **{f"{name}_seconds": seconds for name, seconds in parts.items()},
        "loss/news": loss - 0.2,
        "loss/wiki": loss + 0.2,
        "logged_at": 1_780_000_000.0 + step,
    }


def evaluation_record(step: int, prefix: str = "eval") -> dict:
    loss = 2.1 + 7 * math.exp(-step / 60)
    figures = {"loss": loss, "perplexity": math.exp(loss), "accuracy": 0.35, "bits_per_byte": loss / 3}
    sources = {"loss/news": loss - 0.1, "loss/wiki": loss + 0.1}
    record = {f"{prefix}_{name}": value for name, value in {**figures, **sources}.items()}
    if prefix == "eval":
        arc = {"acc": 0.7 - 0.4 * math.exp(-step / 90), "acc_stderr": 0.013, "chance": 0.25, "num_examples": 1172}
        words = {"acc": 0.5 - 0.5 * math.exp(-step / 90), "perplexity": 12.0, "num_examples": 5153}
        record |= {f"task/arc/{name}": value for name, value in arc.items()}
        record |= {f"task/lambada/{name}": value for name, value in words.items()}
    return {"step": step, **record, "logged_at": 1_780_000_000.5 + step}


SPIKED = {
    "dataset": "blocks",
    "block": 1234,
    "block_loss": 9.5,
    "documents": [{"source": "a", "file": SCRIPT, "line": 3}],
}


def event(step: int, name: str, **told: object) -> dict:
    return {"step": step, "event": name, **told, "logged_at": 1_780_000_000.2 + step}


def samples(step: int) -> list[dict]:
    return [{"prompt": "I wanna go", "continuation": f"home {step} {SCRIPT}"}, {"prompt": SCRIPT, "continuation": "x"}]


def run_records(num_steps: int = 400) -> list[dict]:
    records = [event(0, "start", resumed_from=None, num_processes=8, num_parameters=6_738_415_616)]
    for step in range(1, num_steps + 1):
        records.append(training_record(step))
        records += [evaluation_record(step), event(step, "samples", samples=samples(step))] if step % 50 == 0 else []
        records += (
            [event(step, "save", checkpoint=f"checkpoint-{step}", num_bytes=94_340_000_000, seconds=61.5)]
            if step % 100 == 0
            else []
        )
    records += [event(77, "non-finite", step_loss="nan"), event(150, "spike", score=11.5, blocks=[SPIKED])]
    records.append(event(200, "start", resumed_from="checkpoint-200", num_processes=8))
    records += [event(220, "warning", message=SCRIPT), evaluation_record(num_steps, "test")]
    return sorted(records, key=lambda record: record["logged_at"])


def write_drawn_run(run_dir: Path, records: list[dict] | None = None, *, max_steps: int = 400) -> Path:
    run_dir.mkdir(parents=True)
    record = {
        "command": f"pretrain.py --model {SCRIPT}",
        "identity": {"global_batch_tokens": 4096, "data": [{"manifest_sha256": "5bfd42499b5b8e50"}]},
        "arguments": {"max_steps": max_steps, "model": "llama2_7b", "dataset": ["news=a:0.7", "wiki=b:0.3"]},
        "num_parameters": 6_738_415_616,
        "hardware": {
            "num_processes": 8,
            "gpu": "NVIDIA H200",
            "gpus": [{"name": "NVIDIA H200", "memory_bytes": 150_754_820_096}] * 8,
        },
        "git": {"commit": "0123456789abcdef", "is_dirty": True},
        "packages": {"torch": "2.13.0"},
    }
    (run_dir / "run.json").write_text(json.dumps(record))
    lines = [json.dumps(record) for record in (run_records() if records is None else records)]
    (run_dir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return run_dir
