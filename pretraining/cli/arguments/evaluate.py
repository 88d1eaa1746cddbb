"""The flags of tools.evaluate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.cli.flags import check_all, flag


@dataclass(frozen=True)
class EvaluationArguments:
    """Flags of tools.evaluate."""

    model: list[str] = flag([], "run folders, exported models, checkpoints or Hub ids; come first, without --model")
    all_checkpoints: bool = flag(False, "evaluate every checkpoint and exported model of each run folder")
    data_files: list[str] | None = flag(None, "files of documents, as in preprocess.py; NAME=FILES names a source")
    text_field: str = flag("text", "field that holds a document's text; a.b is field b of object a")
    source_field: str = flag("source", "field that names a document's source; default: the file's name")
    split_text_files: bool = flag(False, "blank lines divide a .txt file into documents; otherwise it is one")
    max_document_bytes: int = flag(6 << 20, "skip larger lines (rows, text files)")
    window_tokens: int | None = flag(None, "context in tokens; default: all positions of the model")
    dataset: str | None = flag(None, "block store, folder or Hub id, instead of --data_files")
    split: Literal["train", "validation", "test"] = flag("test", "split of --dataset")
    document_masking: bool = flag(False, "no attention across documents of --dataset, for models trained so")
    ignore_first_token: bool = flag(False, "do not predict the first token of documents of --dataset")
    batch_tokens: int = flag(8192, "tokens per forward pass; changes only speed and memory")
    tasks: list[str] = flag(
        [],
        "downstream tasks, as in pretrain.py --eval_tasks: FILE or NAME=FILE of JSON lines, or a task of "
        "lm-evaluation-harness by its name or YAML file",
    )
    prompts: list[str] | None = flag(None, "complete these prompts with each model", is_text=True)
    max_new_tokens: int = flag(60, "maximum tokens of each completion of --prompts")
    seed: int | None = flag(42, "seed for --prompts, as in generate.py; none: greedy decoding")
    completions: Path | None = flag(None, "report on this file of completions, written by generate.py --output")
    reference_files: list[str] | None = flag(
        None, "for --completions: files of documents whose perplexity is shown next to that of the completions"
    )
    blocks: Path | None = flag(None, "for --completions: block store of the training, to find copied text")
    output: Path | None = flag(None, "also write the metrics to this file, as JSON")

    def __post_init__(self) -> None:
        """Check all combinations of flags at once."""
        has_data, is_report = self.data_files is not None or self.dataset is not None, self.completions is not None
        checks = {
            "--model: is missing; pass a run folder, a model, a checkpoint or a Hub id": bool(self.model) or is_report,
            "--data_files, --dataset, --tasks, --prompts, --completions: are missing; pass what to evaluate": (
                has_data or bool(self.tasks) or bool(self.prompts) or is_report
            ),
            "--data_files, --dataset: exclude each other; use one": self.data_files is None or self.dataset is None,
            f"--window_tokens {self.window_tokens}: does not apply to --dataset; remove it": (
                self.window_tokens is None or self.dataset is None
            ),
            "--prompts: is empty; pass at least one word": all(self.prompts or ["-"]),
            "--completions: excludes --data_files, --dataset, --tasks, --prompts and several models; remove them": (
                not (is_report and (has_data or self.tasks or self.prompts or self.all_checkpoints))
                and not (is_report and len(self.model) > 1)
            ),
            "--reference_files, --blocks: are for --completions; add it, or remove them": (
                is_report or (self.reference_files is None and self.blocks is None)
            ),
            "--reference_files: needs a model; pass one": self.reference_files is None or bool(self.model),
        }
        check_all(checks)
