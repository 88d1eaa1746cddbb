"""datatrove's DocumentTokenizer, one task a core.

It works file by file, so it gets the input in as many parts; documents keep their order, as in the other arms.
"""

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer

from benchmarks.preprocess.peers.job import Job, job_of_command_line


def main(job: Job) -> None:
    """Read the parts and write one stream of ids for each."""
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(job.parts_dir), glob_pattern="*.jsonl"),
            DocumentTokenizer(
                str(job.output_dir / "tokens"),
                tokenizer_name_or_path=str(job.tokenizer / "tokenizer.json"),
                eos_token=job.eos_token,
                shuffle_documents=False,
            ),
        ],
        tasks=job.num_workers,
        logging_dir=str(job.output_dir / "logs"),
    ).run()


if __name__ == "__main__":
    main(job_of_command_line())
