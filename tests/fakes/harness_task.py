"""Tasks of lm-evaluation-harness on local examples, as its users write them."""

import json
from pathlib import Path
from typing import Any

YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
doc_to_text: "{{{{context}}}}"
output_type: {kind}
"""
KINDS = {
    "multiple_choice": 'doc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
    "metric_list:\n  - metric: acc\n  - metric: acc_norm\n",
    "loglikelihood": "doc_to_target: \"{{' ' + completion}}\"\nmetric_list:\n  - metric: acc\n  - metric: perplexity\n",
    "generate_until": 'doc_to_target: "{{completion}}"\nmetric_list:\n  - metric: exact_match\n',
}


def write_task(folder: Path, name: str, kind: str, records: list[dict[str, Any]]) -> tuple[Path, Path]:
    """The examples as JSON lines, and a task of the harness on them."""
    lines, task = folder / f"{name}.jsonl", folder / f"{name}.yaml"
    lines.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    task.write_text(YAML.format(name=name, path=lines, kind=kind) + KINDS[kind])
    return lines, task
