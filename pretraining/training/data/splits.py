"""All that a run reads: the blocks of each split of each store, their order, their sources."""

from dataclasses import dataclass

from pretraining.data.encode.splits import Split
from pretraining.data.mixture import Mixture
from pretraining.training.data.dataset import BlockDataset, BlockFields, MixedBlocks
from pretraining.training.data.loader import BlockStream
from pretraining.training.data.sources import DocumentSources, read_document_sources
from pretraining.training.data.text_bytes import TextBytes, open_text_bytes


@dataclass(frozen=True)
class TrainingData:
    """The opened splits; validation and test are None when they have no block.

    `sources` are the names by which figures are told: those of a mixture's stores, or of a lone store's documents.
    """

    mixture: Mixture
    stream: BlockStream
    sources: tuple[str, ...]
    text_bytes: TextBytes | None
    train: MixedBlocks
    validation: MixedBlocks | None
    test: MixedBlocks | None


def open_training_data(mixture: Mixture, stream: BlockStream, fields: BlockFields) -> TrainingData:
    """Open everything; what is missing or damaged shows here, not at the end of the run.

    Raises:
        UserError: when a shard is missing or damaged.
    """
    names, sources = sources_of(mixture)
    origin = mixture.origin
    train = open_split(mixture, "train", fields, sources)
    assert train is not None, "the plan refuses data without a training block"
    return TrainingData(
        mixture=mixture,
        stream=stream,
        sources=names,
        text_bytes=open_text_bytes(mixture.first.folder / "tokenizer", origin.tokenizer.canary_ids, origin.token_rules),
        train=train,
        validation=open_split(mixture, "validation", fields, sources),
        test=open_split(mixture, "test", fields, sources),
    )


def sources_of(mixture: Mixture) -> tuple[tuple[str, ...], list[DocumentSources | int]]:
    """The names of the sources, and for each store which of them its tokens are."""
    if len(mixture.parts) > 1:
        return tuple(part.source or "" for part in mixture.parts), list(range(len(mixture.parts)))
    documents = read_document_sources(mixture.first.folder, mixture.first.manifest)
    return ("all",) if documents is None else documents.names, [0 if documents is None else documents]


def open_split(
    mixture: Mixture, split: Split, fields: BlockFields, sources: list[DocumentSources | int]
) -> MixedBlocks | None:
    """The blocks of a split, `sources` as `sources_of` tells them; None when there is no block."""
    stores = [part.store for part in mixture.parts]
    parts = [
        BlockDataset(store.folder, store.manifest, split, fields=fields, sources=source)
        for store, source in zip(stores, sources, strict=True)
        if store.manifest.splits[split].num_blocks
    ]
    return MixedBlocks(parts) if parts else None
