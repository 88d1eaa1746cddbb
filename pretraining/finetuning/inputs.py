"""Find the inputs of finetune.py, model and conversations, without torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from pretraining.cli.arguments.finetune import FinetuneArguments
from pretraining.cli.arguments.preprocess import HUB_ID
from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.input.find import InputFile, find_inputs
from pretraining.data.tokenize.tokenizer import DocumentTokenizer, load_document_tokenizer, read_special_tokens
from pretraining.errors import UserError, reading
from pretraining.runs.run_folder import BLOCKS_DIR_NAME, MODEL_DIR_NAME, is_run_folder
from pretraining.runs.untrusted import check_model_folder
from pretraining.training.config.early_checks import check_run_folder
from pretraining.training.model.fields import max_positions, model_fields

DEFAULT_BLOCK_LENGTH = 2048
MODEL_FILES = ("config.json", "*.safetensors", "tokenizer.json")  # required in a folder


@dataclass(frozen=True)
class BaseModel:
    """The folder of a model, its name in model cards, and the name of a run that starts from it."""

    folder: Path
    name: str
    run_name: str


@dataclass(frozen=True)
class FinetuneInputs:
    """The flags of training with the model in them, its folder, and the files; no files for --dry_run."""

    run: PretrainArguments
    model_dir: Path
    files: list[InputFile]


def find_inputs_of(arguments: FinetuneArguments) -> FinetuneInputs:
    """Find model and files, and check the run folder.

    Raises:
        UserError: when one of them is missing or cannot be used.
    """
    flags = arguments.conversations
    model = find_base_model(flags.model or "")
    run = with_model(arguments.run, model)
    if run.plan.dry_run:
        return FinetuneInputs(run, model.folder, [])
    run_dir = Path(run.trainer["output_dir"])
    if is_run_folder(run_dir) and not (run_dir / BLOCKS_DIR_NAME).exists():
        raise UserError(f"--output_dir {run_dir}: has other files; choose another folder")
    check_run_folder(run_dir, run.durability.resume)
    return FinetuneInputs(run, model.folder, find_inputs(flags.data_files, output_dir=run_dir))


def with_model(run: PretrainArguments, model: BaseModel) -> PretrainArguments:
    """The flags of training with the model, its block length and the run folder."""
    location = str(model.folder)
    run = replace(run, model=replace(run.model, model=location), weights=location, weights_name=model.name)
    positions = max_positions(model_fields(run.model, None))
    run_dir = Path(run.trainer["output_dir"] or Path("runs") / model.run_name)
    data = replace(
        run.data,
        block_length=run.data.block_length or min(positions, DEFAULT_BLOCK_LENGTH),
        dataset=[str(run_dir / BLOCKS_DIR_NAME)],
    )
    return replace(run, data=data, trainer={**run.trainer, "output_dir": str(run_dir)})


def find_base_model(name: str) -> BaseModel:
    """The model of --model: a folder, a run folder, or a model of the Hub, which is downloaded. No pickle is read.

    Raises:
        UserError: when the model does not exist, or has custom code.
    """
    folder = Path(name)
    if is_run_folder(folder):
        folder /= MODEL_DIR_NAME
    whose = folder.resolve().parent if folder.name == MODEL_DIR_NAME else folder
    found = BaseModel(folder, str(folder), f"{whose.name}-finetuned")
    if not folder.exists() and HUB_ID.fullmatch(name):
        from pretraining.hub.repository import download_files  # the Hub's client takes 0.2 s to import

        folder = download_files(name, ["*.safetensors", "*.json", "*.jinja"], flag="--model")
        found = BaseModel(folder, f"{name} at {folder.name[:12]}", f"{name.rpartition('/')[2]}-finetuned")
    missing = [pattern for pattern in MODEL_FILES if not any(folder.glob(pattern))]
    if missing:
        raise UserError(
            f"--model {name}: not an exported model ({', '.join(missing)} missing in {folder}); use RUN/model, or "
            "export a checkpoint: python3 -m tools.checkpoints export CHECKPOINT OUT"
        )
    check_model_folder(folder, f"--model {name}")
    return found


def load_model_tokenizer(folder: Path) -> DocumentTokenizer:
    """The model's tokenizer; it adds BOS if that of the folder does.

    Raises:
        UserError: when it cannot be read, or has no EOS, without which no answer would end.
    """
    with reading(f"--model {folder}: its tokenizer", remedy="copy or export the model again"):
        bos_token = read_special_tokens(folder).get("bos_token")
        first = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").tokens[:1]
    return load_document_tokenizer(str(folder), add_bos=first == [bos_token], flag="--model")
