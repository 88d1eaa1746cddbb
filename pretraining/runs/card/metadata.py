"""The YAML at the head of a model card, which the Hub checks: tags, data, and the evaluation as it shows it."""

import re
from collections.abc import Iterator

from huggingface_hub import EvalResult, ModelCardData

from pretraining.runs.card.facts import CardFacts
from pretraining.runs.history import RunHistory

TASK = "text-generation"
METRICS = {"loss": "Loss", "perplexity": "Perplexity", "accuracy": "Accuracy", "bits_per_byte": "Bits per byte"}


def metadata(history: RunHistory, facts: CardFacts) -> str:
    """The YAML, without the lines around it."""
    card = ModelCardData(
        license=facts.license_name,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=[
            "llama",
            *(("pretraining", "trained-from-scratch") if facts.base is None else ("fine-tuned",)),
            "deepspeed",
        ],
        datasets=[data.name for data in facts.data if data.commit is not None] or None,
        model_name=facts.name,
        eval_results=list(_results(history, facts)) or None,
    )
    return card.to_yaml().strip()


def _results(history: RunHistory, facts: CardFacts) -> Iterator[EvalResult]:
    """The newest figures of each split; the Hub takes no value that is no number."""
    for split, records in history.evaluations.items():
        prefix = "test_" if split == "test" else "eval_"
        for metric, name in METRICS.items():
            value = records[-1].get(f"{prefix}{metric}") if records else None
            if isinstance(value, (int, float)):
                yield EvalResult(
                    task_type=TASK,
                    dataset_type=_hub_word(facts.data[0].name),
                    dataset_name=" ".join(data.name for data in facts.data),
                    dataset_split=split,
                    dataset_revision=facts.data[0].commit,
                    metric_type=metric,
                    metric_name=name,
                    metric_value=round(value, 6),
                )


def _hub_word(name: str) -> str:
    """A name as the Hub's check wants it of a data set, on the Hub or not."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") if not re.fullmatch(r"[\w-]+/[\w.-]+", name) else name
