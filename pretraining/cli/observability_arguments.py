"""The flags of pretrain.py about what is seen of a run while it trains."""

from dataclasses import dataclass

from pretraining.cli.errors import UserError
from pretraining.cli.flags import flag


@dataclass(frozen=True)
class ObservabilityArguments:
    """What is shown besides the figures of each step."""

    sample_steps: int | None = flag(None, "continue --sample_prompts every so many steps, and keep what comes")
    sample_prompts: list[str] = flag(["The", "I wanna go"], "texts that samples begin with")
    sample_tokens: int = flag(48, "tokens of each sample")
    report: bool = flag(True, "write report.html and curves at each evaluation and at the end")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        names = ("sample_steps", "sample_tokens")
        values = {name: getattr(self, name) for name in names}
        problems = [
            f"--{name} {value}: give 1 or more" for name, value in values.items() if value is not None and value < 1
        ]
        if any(not prompt for prompt in self.sample_prompts):
            problems.append("--sample_prompts: one of them is empty; give a text")
        if problems:
            raise UserError(*problems)
