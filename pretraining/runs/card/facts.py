"""What a model card tells and a run folder does not."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CardData:
    """A block store that a model was trained on. `share` is that of its blocks, of all; `commit` is the Hub's.

    `files` are Markdown.
    """

    name: str
    commit: str | None
    manifest_sha256: str
    num_documents: int
    num_tokens: int
    share: float
    files: Sequence[str]


@dataclass(frozen=True)
class CardFacts:
    """All of it; `license_name` is the Hub's word for the licence of the model, `base` what it was fine-tuned from.

    `tokenizer` is Markdown. No path tells a folder of this machine.
    """

    name: str
    step: int
    num_tokens: int
    num_epochs: float
    data: Sequence[CardData]
    block_length: int
    tokenizer: str
    license_name: str | None
    base: str | None = None
