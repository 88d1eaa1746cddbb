"""The flags of generate.py, and their defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.cli.flags import check_all, flag

DEFAULT_PROMPT = "I wanna go"


@dataclass(frozen=True)
class GenerateArguments:
    """Flags of generate.py."""

    model: str | None = flag(
        None, "run folder, exported model, checkpoint or Hub id; without it, the newest run in runs/"
    )
    revision: str | None = flag(None, "branch, tag or commit of a model on the Hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = flag(
        "auto", "precision to compute in; auto is the model's own on a GPU, and on a CPU float32 while that has room"
    )
    prompt: list[str] | None = flag(
        None,
        f"one or more prompts; - reads one from each line of stdin, as a pipe alone does; else {DEFAULT_PROMPT!r}; "
        "an empty one begins a document, for models trained on blocks of --add_bos",
        is_text=True,
    )
    prompt_file: Path | None = flag(None, "text with one prompt a line, or .jsonl with a field prompt")
    interactive: bool = flag(False, "ask for prompts on the terminal, one after another")
    output: Path | None = flag(None, "write JSON lines to this file instead of text; goes on after an interruption")
    stats: bool = flag(
        False, "say at the end how long, repetitive, varied and likely the texts are, and how they ended"
    )
    held_out: list[str] | None = flag(
        None, "for --stats: files of documents, as preprocess.py takes them, to compare how likely the model finds both"
    )
    blocks: Path | None = flag(None, "for --stats: the block store of the training, to tell what is copied from there")
    num_samples: int = flag(1, "continuations of each prompt")
    max_new_tokens: int = flag(200, "tokens after which a continuation ends without EOS")
    stop: list[str] | None = flag(None, "texts that end a continuation, and are cut off", is_text=True)
    greedy: bool = flag(False, "take the most likely token (after --repetition_penalty)")
    num_beams: int = flag(1, "above 1 searches the most likely text with this many beams, and draws nothing")
    temperature: float = flag(0.8, "below 1 safer, above 1 wilder")
    top_k: int = flag(50, "draw from this many most likely tokens; 0 for all")
    top_p: float = flag(0.95, "draw from the most likely tokens that together have this probability")
    min_p: float = flag(0.0, "draw from tokens that have at least this share of the most likely one's probability")
    repetition_penalty: float = flag(1.1, "above 1 makes tokens that stand there already less likely")
    no_repeat_ngram_size: int = flag(0, "no run of this many tokens comes twice; 0 allows it")
    seed: int = flag(42, "same seed, same text")
    batch_size: int = flag(32, "continuations that grow at once; the text does not depend on it")

    def __post_init__(self) -> None:
        """Check what contradicts itself, all at once."""
        check_all(self._combinations())

    def _combinations(self) -> dict[str, bool]:
        searches = self.num_beams > 1
        is_compared = self.held_out is not None or self.blocks is not None
        return {
            "--stop: is empty; give a text": all(self.stop or ["-"]),
            "--num_samples: greedy decoding has one continuation; give 1": not (self.greedy and self.num_samples > 1),
            "--num_beams: --greedy takes one continuation alone; leave one of them out": not (self.greedy and searches),
            f"--num_samples {self.num_samples}: is more than --num_beams {self.num_beams}; give as many or fewer": (
                not searches or self.num_samples <= self.num_beams
            ),
            "--stop: beam search does not look for it; leave out --stop or --num_beams": not (searches and self.stop),
            "--prompt, --prompt_file and --interactive each give the prompts; keep one": (
                (self.prompt is not None) + (self.prompt_file is not None) + self.interactive <= 1
            ),
            "--output: --interactive shows its text; leave out one of them": not (self.interactive and self.output),
            "--held_out, --blocks: are for --stats; give it too, or leave them out": self.stats
            or self.interactive
            or not is_compared,
            "--stats, --held_out, --blocks: --interactive has no end to say them at; leave out them or it": not (
                self.interactive and (self.stats or is_compared)
            ),
        }
