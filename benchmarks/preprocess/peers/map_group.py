"""load_dataset, map(tokenize), map(group_texts): the steps of run_clm.py, the Transformers example.

The blocks are the cache files of the last map, as there; only their place is chosen here, so that they are found.
"""

from itertools import chain
from typing import Any

from datasets import load_dataset
from transformers import AutoTokenizer

from benchmarks.preprocess.peers.job import Job, job_of_command_line

Batch = dict[str, list[Any]]


def main(job: Job) -> None:
    """Tokenize and group with one process per core."""
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)

    def tokenize(batch: Batch) -> Batch:
        return tokenizer(batch["text"])

    def group_texts(batch: Batch) -> Batch:
        joined = {key: list(chain(*rows)) for key, rows in batch.items()}
        total = len(joined["input_ids"]) // job.block_length * job.block_length  # the rest of each batch is dropped
        starts = range(0, total, job.block_length)
        blocks = {key: [ids[start : start + job.block_length] for start in starts] for key, ids in joined.items()}
        return {**blocks, "labels": blocks["input_ids"].copy()}

    texts = load_dataset("json", data_files=str(job.data_file), split="train")
    tokens = texts.map(tokenize, batched=True, num_proc=job.num_workers, remove_columns=texts.column_names)
    job.output_dir.mkdir(parents=True)
    blocks_path = str(job.output_dir / "blocks.arrow")
    tokens.map(group_texts, batched=True, num_proc=job.num_workers, cache_file_name=blocks_path)


if __name__ == "__main__":
    main(job_of_command_line())
