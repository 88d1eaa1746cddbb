"""The model from whose weights a run starts: find it, and compare its tokenizer with that of the blocks. No torch."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from pretraining.cli.arguments.preprocess import HUB_ID
from pretraining.cli.arguments.pretrain import ParentModel, PretrainArguments
from pretraining.data.mixture import BlockStore
from pretraining.data.tokenize.tokenizer import encode_canary
from pretraining.errors import UserError, reading, shortened
from pretraining.runs.model_source import find_model, split_revision
from pretraining.runs.record_file import read_run_record
from pretraining.runs.run_folder import MODEL_DIR_NAME, checkpoint_step, is_run_folder, optimizer_shards
from pretraining.runs.untrusted import MODEL_INDEX_NAME
from pretraining.system.checked_json import parse_json
from pretraining.system.files import xxh3_of

MIN_LOGGED_BYTES = 1e9  # less is hashed in no time

logger = logging.getLogger(__name__)


def find_parent(name: str, *, flag: str, needs_tokenizer: bool, needs_weights: bool = True) -> ParentModel:
    """Find the model that a flag names, USER/NAME@REVISION on the Hub; it is downloaded with `needs_weights` only.

    Raises:
        UserError: when it does not exist, is not a Llama, or is not safe to load.
    """
    model, revision = split_revision(name)
    if revision is not None and Path(model).expanduser().is_dir():
        raise UserError(
            f"{flag} {name}: {model} is a folder here, which has no revision; remove @{revision}, or start the run "
            "in another folder to use the Hub model of that name"
        )
    source = find_model(model, revision, flag=flag, needs_tokenizer=needs_tokenizer, needs_weights=needs_weights)
    folder = Path(source.location)
    is_local = Path(model).expanduser().is_dir()
    in_run = folder.name == MODEL_DIR_NAME or checkpoint_step(folder) is not None
    run_name = (folder.resolve().parent if in_run else folder).name if is_local else model.rpartition("/")[2]
    return ParentModel(
        folder=str(folder),
        place=f"{flag} {name}",
        name=str(folder) if is_local else f"{model} at {folder.name[:12]}",
        run_name=run_name,
        tokenizer_dir=source.tokenizer_location or None,
        only_shards=source.only_shards,
    )


def with_parent(arguments: PretrainArguments) -> PretrainArguments:
    """The flags with the model of --weights, if any, its config, and a run folder named after it.

    Raises:
        UserError: as `find_parent`.
    """
    weights = arguments.model.weights
    if weights is None:
        return arguments
    needs_weights = not arguments.plan.dry_run
    is_here = (
        needs_weights and Path(weights).expanduser().is_dir()
    )  # what is on the Hub is downloaded once it is chosen
    named = find_parent(weights, flag="--weights", needs_tokenizer=False, needs_weights=is_here)
    output_dir = arguments.trainer["output_dir"] or str(Path("runs") / f"{named.run_name}-continued")
    began_from = _began_from(weights, named, Path(output_dir), arguments.durability.resume)
    parent = find_parent(began_from or weights, flag="--weights", needs_tokenizer=False, needs_weights=needs_weights)
    if began_from is not None:
        logger.warning(
            "%s: is %s now; %s began from %s, which is used", named.place, named.name, output_dir, began_from
        )
        is_local = Path(named.name).is_dir()
        name = parent.name if is_local else f"{weights} at {Path(began_from).name[:12]}"
        parent = replace(parent, place=named.place, name=name, run_name=named.run_name)
    return replace(
        arguments,
        model=replace(arguments.model, model=parent.folder),
        parent=parent,
        trainer={**arguments.trainer, "output_dir": output_dir},
    )


def _began_from(weights: str, named: ParentModel, output_dir: Path, resume: str) -> str | None:
    """The folder that a run to be resumed began from, where --weights names another one of the same run by now.

    A run has a newer checkpoint or is exported, the main branch of a repository moves. A folder or @REVISION that is
    named stays what it is.
    """
    run_dir = output_dir if resume in ("auto", "never") else Path(resume).parent
    if resume == "never" or not is_run_folder(run_dir):
        return None
    recorded = read_run_record(run_dir).get("arguments", {}).get("weights")
    model, revision = split_revision(weights)
    is_moving = is_run_folder(Path(model).expanduser()) or not Path(model).expanduser().is_dir()
    if not isinstance(recorded, str) or revision is not None or not is_moving or not Path(recorded).is_dir():
        return None
    old, new = Path(recorded).resolve(), Path(named.folder).resolve()
    return recorded if old != new and old.parent == new.parent else None


def unused_weights(arguments: PretrainArguments) -> Iterator[str]:
    """A line for a --model that comes with weights: a folder that has some, or a Hub id, which as a rule does."""
    name = arguments.model.model
    if arguments.parent is not None or Path(name).is_file():
        return
    if weight_files(Path(name)) if Path(name).is_dir() else HUB_ID.fullmatch(name):
        yield f"--model {name}: only its config is used, weights start at random; to use its weights: --weights {name}"


def check_vocabulary(parent: ParentModel, store: BlockStore, *, grows: bool) -> None:
    """Check that the tokenizer of the blocks gives the ids with which the model was trained.

    All tokens of the model must have their ids, and the canary text of the blocks its ids: merges, normalization and
    added tokens decide about those. With `grows`, more tokens may follow. The files themselves may differ: an exported
    model has other rules for BOS.

    Raises:
        UserError: with the first token that differs.
    """
    if parent.tokenizer_dir is None:
        logger.warning(
            "%s: has no tokenizer.json, so only the size of its vocabulary is compared with that of the blocks",
            parent.place,
        )
        return
    theirs, ours = vocabulary_of(Path(parent.tokenizer_dir)), vocabulary_of(store.folder / "tokenizer")
    remedy = f"preprocess with the tokenizer of the model: --tokenizer {parent.tokenizer_dir}"
    place = f"--dataset {store.name}"
    for token, number in sorted(theirs.items(), key=lambda item: item[1]):
        if ours.get(token) != number:
            found = "is not in their tokenizer" if token not in ours else f"has id {ours[token]:,} in their tokenizer"
            raise UserError(
                f"{place}: its blocks are not of the tokenizer of {parent.place}: its token {shortened(token)!r} (id "
                f"{number:,}) {found}; {remedy}"
            )
    num_new = len(ours) - len(theirs)
    if num_new and not grows:
        raise UserError(
            f"{place}: its tokenizer has {num_new:,} tokens more than that of {parent.place}; pass --grow_vocabulary, "
            f"or {remedy}"
        )
    identity = store.manifest.origin.tokenizer
    if not num_new and encode_canary(Path(parent.tokenizer_dir), identity.canary_text) != identity.canary_ids:
        raise UserError(
            f"{place}: its tokenizer has the tokens of {parent.place}, but divides text otherwise (other merges or "
            f"normalization); {remedy}"
        )


def vocabulary_of(tokenizer_dir: Path) -> dict[str, int]:
    """The id of each token, with added tokens.

    Raises:
        UserError: when tokenizer.json cannot be read.
    """
    with reading(f"{tokenizer_dir}: its tokenizer.json", remedy="copy it there again"):
        return Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json")).get_vocab(with_added_tokens=True)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: those of its index, if it has one; otherwise its ZeRO shards.

    Some repositories have the same weights again in another format, e.g. consolidated.safetensors.
    """
    index = folder / MODEL_INDEX_NAME
    if index.is_file():
        with reading(f"{index}:", remedy="copy or download the model again"):
            return sorted({folder / name for name in parse_json(index.read_bytes())["weight_map"].values()})
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors")) or optimizer_shards(folder)


def weight_hashes(parent: ParentModel) -> dict[str, str]:
    """The xxh3 of each file of weights, by its path in the folder."""
    folder = Path(parent.folder)
    with reading(f"{parent.place}: its weights", remedy="copy or download the model again"):
        files = weight_files(folder)
        num_bytes = sum(path.stat().st_size for path in files)
        if num_bytes > MIN_LOGGED_BYTES:
            logger.info("%s: hashing %.1f GB of weights", parent.place, num_bytes / 1e9)
        return {path.relative_to(folder).as_posix(): xxh3_of(path) for path in files}
