"""The flags of pretrain.py about what is seen of a run while it trains."""

from dataclasses import dataclass

from pretraining.cli.arguments.preprocess import LICENSE
from pretraining.cli.flags import flag
from pretraining.errors import UserError


@dataclass(frozen=True)
class ObservabilityArguments:
    """What is shown besides the figures of each step."""

    sample_steps: int | None = flag(None, "continue --sample_prompts every so many steps, and keep what comes")
    sample_prompts: list[str] = flag(["The", "I wanna go"], "texts that samples begin with", is_text=True)
    sample_tokens: int = flag(48, "tokens of each sample")
    report: bool = flag(True, "write report.html and curves at each evaluation and at the end")
    license: str | None = flag(None, "licence of the model for its card, in the Hub's word, as apache-2.0")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        problems = []
        if any(not prompt for prompt in self.sample_prompts):
            problems.append("--sample_prompts: one of them is empty; give a text")
        if self.license is not None and not LICENSE.fullmatch(self.license):
            problems.append(f"--license {self.license}: give the Hub's word for it, such as apache-2.0 or other")
        if problems:
            raise UserError(*problems)
