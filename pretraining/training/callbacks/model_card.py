"""Write the model cards of a run."""

import logging
from pathlib import Path

from pretraining.data.build.card import described_source
from pretraining.data.mixture import WeightedStore
from pretraining.data.store.manifest import MANIFEST_NAME
from pretraining.runs.history import read_history
from pretraining.runs.model_card import CardData, CardFacts, CardParent, read_parent_card, write_card
from pretraining.runs.run_folder import MODEL_DIR_NAME
from pretraining.system.escapes import markdown_code
from pretraining.system.files import sha256_of
from pretraining.system.privacy import hide_path
from pretraining.training.config.run_config import RunConfig
from pretraining.training.config.startup_log import phase_lines

logger = logging.getLogger(__name__)


def try_write_card(run: RunConfig, folder: Path, step: int, *, repository: str | None = None) -> None:
    """Call `write_card_of`; a card that fails is only logged."""
    try:
        write_card_of(run, folder, step, repository=repository)
    except Exception as error:  # the model is complete without it
        logger.warning("%s: the model card could not be written (%s)", folder, error)


def write_card_of(run: RunConfig, folder: Path, step: int, *, repository: str | None) -> None:
    """Write the card of a run at a step into its own folder or that of a model; `repository` is the Hub repository."""
    spec, num_blocks = run.mixture.origin, run.num_consumed(step)
    model_dir = run.run_dir / MODEL_DIR_NAME if folder == run.run_dir else folder
    has_model = folder != run.run_dir or run.arguments.durability.export
    facts = CardFacts(
        name=run.run_dir.resolve().name if repository is None else repository.rpartition("/")[2],
        step=step,
        num_tokens=num_blocks * run.batch.block_length,
        num_epochs=run.num_epochs(num_blocks),
        data=[_card_data(part, share) for part, share in zip(run.mixture.parts, run.shares, strict=True)],
        block_length=spec.block_length,
        tokenizer=f"{markdown_code(hide_path(spec.tokenizer.name))}, {spec.tokenizer.vocab_size:,} tokens, sha256 "
        f"of its tokenizer.json `{spec.tokenizer.sha256}`",
        license_name=run.arguments.observability.license,
        num_steps=run.num_steps,
        phases=list(phase_lines(run)),
        parent=_parent(run),
    )
    history = read_history(run.run_dir, until_step=step)
    location = repository or (hide_path(model_dir) if has_model else None)
    write_card(folder, history, facts, location=location)


def _parent(run: RunConfig) -> CardParent | None:
    parent = run.arguments.parent
    if parent is None:
        return None
    name = hide_path(parent.name)
    if name == Path(parent.folder).name != parent.run_name:  # `model` or `checkpoint-500` of a run
        name = f"{parent.run_name}/{name}"
    return CardParent(
        name=name,
        hashes=run.initial_weights or {},
        license_name=read_parent_card(Path(parent.folder)).license_name,
        is_tuned=run.mixture.origin.chat_template is not None,
    )


def _card_data(part: WeightedStore, share: float) -> CardData:
    manifest = part.store.manifest
    return CardData(
        name=hide_path(part.store.name),
        commit=part.store.commit,
        manifest_sha256=sha256_of(part.store.folder / MANIFEST_NAME),
        num_documents=manifest.splits["train"].num_documents,
        num_tokens=manifest.splits["train"].num_tokens,
        share=share,
        conversations=manifest.conversations,
        files=[described_source(source) for source in manifest.origin.sources],
    )
