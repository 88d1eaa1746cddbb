"""The flags of generate.py, and their defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.cli.flags import check_all, flag

DEFAULT_PROMPT = "I wanna go"


@dataclass(frozen=True)
class GenerateArguments:
    """Flags of generate.py."""

    model: str | None = flag(None, "run folder, exported model, checkpoint or Hub id; none: the newest run in runs/")
    revision: str | None = flag(None, "branch, tag or commit of a model on the Hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = flag(
        "auto", "compute dtype; auto: the model's dtype on GPU; on CPU float32 if memory allows"
    )
    prompt: list[str] | None = flag(
        None,
        f"prompts; -: the lines of stdin, as for a pipe; none: {DEFAULT_PROMPT!r}; an empty one starts a document, for "
        "models trained with --add_bos",
        is_text=True,
    )
    prompt_file: Path | None = flag(None, "text with one prompt per line, or .jsonl with a field prompt")
    interactive: bool = flag(False, "read prompts from the terminal")
    chat: bool = flag(False, "talk to a model of finetune.py: typed messages, or the lines of stdin; /reset, /exit")
    system: str | None = flag(None, "for --chat: a system message", is_text=True)
    output: Path | None = flag(None, "write JSON lines to this file; the same command resumes after an interruption")
    stats: bool = flag(False, "print text statistics at the end")
    reference_files: list[str] | None = flag(
        None, "for --stats: files of documents, as for preprocess.py, whose likelihood is compared"
    )
    blocks: Path | None = flag(None, "for --stats: block store of the training, to find text copied from it")
    num_samples: int = flag(1, "completions per prompt")
    max_new_tokens: int = flag(200, "maximum tokens per completion")
    stop: list[str] | None = flag(None, "texts that end a completion and are removed from it", is_text=True)
    greedy: bool = flag(False, "always take the most likely token (after --repetition_penalty)")
    num_beams: int = flag(1, "beam search with this number of beams (1 = off)")
    temperature: float = flag(0.8, "sampling temperature (0.7 conservative, 1.2 diverse)")
    top_k: int = flag(50, "sample from the N most likely tokens (0 = all)")
    top_p: float = flag(0.95, "sample from the most likely tokens with this total probability")
    min_p: float = flag(0.0, "sample from tokens with this share of the highest probability")
    repetition_penalty: float = flag(1.1, "penalty for repeated tokens (1 = off)")
    no_repeat_ngram_size: int = flag(0, "forbid repeated n-grams of this size (0 = off)")
    seed: int = flag(42, "same seed, same text")
    batch_size: int = flag(32, "sequences per batch; does not change the text")

    @property
    def is_dialog(self) -> bool:
        """Whether a person types while the program runs."""
        return self.interactive or self.chat

    def __post_init__(self) -> None:
        """Check for contradictions, all at once."""
        check_all(self._combinations())

    def _combinations(self) -> dict[str, bool]:
        searches = self.num_beams > 1
        is_compared = self.reference_files is not None or self.blocks is not None
        return {
            "--stop: is empty; pass a text": all(self.stop or ["-"]),
            "--num_samples: greedy decoding has one completion; use 1": not (self.greedy and self.num_samples > 1),
            "--num_beams: excludes --greedy; remove one of them": not (self.greedy and searches),
            f"--num_samples {self.num_samples}: is more than --num_beams {self.num_beams}; use as many or fewer": (
                not searches or self.num_samples <= self.num_beams
            ),
            "--stop: is not supported by beam search; remove --stop or --num_beams": not (searches and self.stop),
            "--prompt, --prompt_file, --interactive, --chat: exclude each other; keep one": (
                (self.prompt is not None) + (self.prompt_file is not None) + self.interactive + self.chat <= 1
            ),
            "--output: excludes --interactive and --chat; remove one of them": not (self.is_dialog and self.output),
            "--chat: has one answer per message; remove --num_samples and --num_beams": not self.chat
            or (self.num_samples == 1 and not searches),
            "--system: has no effect without --chat; pass both": self.chat or self.system is None,
            "--reference_files, --blocks: have no effect without --stats; add --stats or remove them": self.stats
            or self.is_dialog
            or not is_compared,
            "--stats, --reference_files, --blocks: exclude --interactive and --chat; remove them": not (
                self.is_dialog and (self.stats or is_compared)
            ),
        }
