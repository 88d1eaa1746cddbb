"""The flags of pretrain.py about interruptions: how a run goes on, stops, and is brought up again."""

from dataclasses import dataclass

from pretraining.cli.flags import flag
from pretraining.errors import UserError

# What may be another than in the run that is gone on with, for those who know what they do.
CHANGEABLE = (
    "data",
    "tokenizer_sha256",
    "model_config",
    "global_batch_tokens",
    "seed",
    "order_seed",
    "document_masking",
    "ignore_first_token",
    "precision",
    "optimizer_settings",
    "initial_weights",
    "product_precision",
    "schedule",
)


@dataclass(frozen=True)
class DurabilityArguments:
    """What happens when a run is interrupted, by whomever."""

    resume: str = flag(
        "auto",
        "auto: go on from the newest complete checkpoint of the run folder, if it has one; never: refuse a folder that "
        "holds a run; or the checkpoint to go on from",
    )
    allow_changed: list[str] = flag([], "what may differ from the run that this one goes on with, as schedule data")
    export_every_tokens: int | None = flag(None, "export the weights each time so many tokens were seen, and keep them")
    export: bool = flag(True, "export the model at the end")
    max_hours: float | None = flag(None, "save and stop in time to end so many hours after the start")
    hang_timeout_minutes: float = flag(
        30.0, "end with the stacks of all processes when nothing moves for so long; 0: wait forever"
    )

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        problems = [
            f"--allow_changed {name}: is none of {', '.join(CHANGEABLE)}"
            for name in self.allow_changed
            if name not in CHANGEABLE
        ]
        if problems:
            raise UserError(*problems)
