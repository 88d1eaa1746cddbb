"""All texts in a list, one call of the fast tokenizer, one list of all ids, as in many training scripts."""

import json

from datasets import Dataset
from transformers import AutoTokenizer

from benchmarks.preprocess.peers.job import Job, job_of_command_line


def main(job: Job) -> None:
    """Tokenize everything at once and save the blocks."""
    with job.data_file.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    ids: list[int] = []
    for document_ids in tokenizer(texts, return_attention_mask=False)["input_ids"]:
        ids.extend(document_ids)
    starts = range(0, len(ids) - job.block_length + 1, job.block_length)
    blocks = [ids[start : start + job.block_length] for start in starts]
    Dataset.from_dict({"input_ids": blocks}).save_to_disk(job.output_dir)


if __name__ == "__main__":
    main(job_of_command_line())
