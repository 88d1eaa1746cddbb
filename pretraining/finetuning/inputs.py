"""Find the inputs of finetune.py, model and conversations, without torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from pretraining.cli.arguments.finetune import FinetuneArguments
from pretraining.cli.arguments.pretrain import ParentModel, PretrainArguments
from pretraining.data.input.files import InputFile
from pretraining.data.input.find import find_inputs
from pretraining.data.store.manifest import MANIFEST_NAME
from pretraining.data.tokenize.reference import read_special_tokens
from pretraining.data.tokenize.tokenizer import DocumentTokenizer, load_document_tokenizer
from pretraining.errors import UserError, reading
from pretraining.finetuning.conversations import check_conversations
from pretraining.finetuning.mappings import mappings_for
from pretraining.runs.run_folder import BLOCKS_DIR_NAME, is_run_folder
from pretraining.training.config.early_checks import check_run_folder
from pretraining.training.model.fields import max_positions, model_fields
from pretraining.training.model.parent import find_parent

DEFAULT_BLOCK_LENGTH = 2048


@dataclass(frozen=True)
class FinetuneInputs:
    """The flags of training with the model in them, the folder of its tokenizer, and the files; none for --dry_run."""

    run: PretrainArguments
    tokenizer_dir: Path
    files: list[InputFile]


def find_inputs_of(arguments: FinetuneArguments) -> FinetuneInputs:
    """Find model and files, and check the run folder; read the conversations unless their blocks are written.

    Raises:
        UserError: when one of them is missing or cannot be used.
    """
    flags = arguments.conversations
    is_plan = arguments.run.plan.dry_run
    parent = find_parent(flags.model or "", flag="--model", needs_tokenizer=True, needs_weights=not is_plan)
    assert parent.tokenizer_dir is not None, "needed"
    run, tokenizer_dir = with_model(arguments.run, parent), Path(parent.tokenizer_dir)
    if is_plan:
        return FinetuneInputs(run, tokenizer_dir, [])
    run_dir = Path(run.trainer["output_dir"])
    if is_run_folder(run_dir) and not (run_dir / BLOCKS_DIR_NAME).exists():
        raise UserError(f"--output_dir {run_dir}: has other files; choose another folder")
    check_run_folder(run_dir, run.durability.resume)
    files = find_inputs(flags.data_files, output_dir=run_dir)
    if not (run_dir / BLOCKS_DIR_NAME / MANIFEST_NAME).is_file():
        check_conversations(files, mappings_for(flags))
    return FinetuneInputs(run, tokenizer_dir, files)


def with_model(run: PretrainArguments, parent: ParentModel) -> PretrainArguments:
    """The flags of training with the model, its block length and the run folder."""
    run = replace(run, model=replace(run.model, model=parent.folder), parent=parent)
    positions = max_positions(model_fields(run.model, None))
    run_dir = Path(run.trainer["output_dir"] or Path("runs") / f"{parent.run_name}-finetuned")
    data = replace(
        run.data,
        block_length=run.data.block_length or min(positions, DEFAULT_BLOCK_LENGTH),
        dataset=[str(run_dir / BLOCKS_DIR_NAME)],
    )
    return replace(run, data=data, trainer={**run.trainer, "output_dir": str(run_dir)})


def load_model_tokenizer(folder: Path) -> DocumentTokenizer:
    """The model's tokenizer; it adds BOS if that of the folder does.

    Raises:
        UserError: when it cannot be read, or has no EOS, without which no answer would end.
    """
    plain = load_document_tokenizer(str(folder), add_bos=False, flag="--model")  # BOS and EOS may be those of the class
    with reading(f"--model {folder}: its tokenizer", remedy="copy or export the model again"):
        bos_token = read_special_tokens(plain.folder).get("bos_token")
        first = Tokenizer.from_file(str(plain.folder / "tokenizer.json")).encode("a").tokens[:1]
    if first != [bos_token]:
        return plain
    return load_document_tokenizer(str(folder), add_bos=True, flag="--model")
