"""The opened data of a run: the blocks of each split, their order and their sources."""

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

    Metrics are logged per name in `sources`: the stores of a mixture, or the sources of a single store's documents.
    """

    mixture: Mixture
    stream: BlockStream
    sources: tuple[str, ...]
    text_bytes: TextBytes | None
    train: MixedBlocks
    validation: MixedBlocks | None
    test: MixedBlocks | None

    def chosen_validation(self, num_blocks: int | None) -> MixedBlocks | None:
        """Blocks of validation for evaluations during the training, evenly spread; `num_blocks` None: all."""
        return None if self.validation is None else self.validation.choose(num_blocks)


def open_training_data(mixture: Mixture, stream: BlockStream, fields: BlockFields) -> TrainingData:
    """Open all splits now, so that missing or damaged shards are found before the run, not at its end.

    Raises:
        UserError: when a shard is missing or damaged.
    """
    names, sources = sources_of(mixture)
    origin = mixture.origin
    train = open_split(mixture, "train", fields, sources)
    assert train is not None, "check_blocks rejects data without a training block"
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
    """Return the names of the sources, and for each store the numbers of the sources of its tokens."""
    if len(mixture.parts) > 1:
        return tuple(part.source or "" for part in mixture.parts), list(range(len(mixture.parts)))
    documents = read_document_sources(mixture.first.folder, mixture.first.manifest)
    return ("all",) if documents is None else documents.names, [0 if documents is None else documents]


def open_split(
    mixture: Mixture, split: Split, fields: BlockFields, sources: list[DocumentSources | int]
) -> MixedBlocks | None:
    """Open the blocks of a split, with `sources` from `sources_of`; None when it has none."""
    stores = [part.store for part in mixture.parts]
    parts = [
        BlockDataset(store.folder, store.manifest, split, fields=fields, sources=source)
        for store, source in zip(stores, sources, strict=True)
        if store.manifest.splits[split].num_blocks
    ]
    return MixedBlocks(parts) if parts else None
