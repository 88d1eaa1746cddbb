"""The exported model that goes on learning: a folder of safetensors and JSON, here or on the Hub."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from pretraining.cli.arguments.preprocess import HUB_ID
from pretraining.data.tokenize.tokenizer import DocumentTokenizer, load_document_tokenizer, read_special_tokens
from pretraining.errors import UserError, reading
from pretraining.runs.run_folder import MODEL_DIR_NAME, is_run_folder
from pretraining.runs.untrusted import check_model_folder

FILES = ("config.json", "*.safetensors", "tokenizer.json")  # what a folder must have; the Hub gives other JSON as well


@dataclass(frozen=True)
class StartingModel:
    """The folder of a model, what a card calls it, and the name that a run of it gets."""

    folder: Path
    name: str
    run_name: str


def find_starting_model(name: str) -> StartingModel:
    """What --model means: a folder, that of a run, or a model of the Hub, which is downloaded. No pickle is read.

    Raises:
        UserError: when there is no model, or it brings code of its own.
    """
    folder = Path(name)
    if is_run_folder(folder):
        folder /= MODEL_DIR_NAME
    found = StartingModel(folder, str(folder), _run_name(folder))
    if not folder.exists() and HUB_ID.fullmatch(name):
        folder = _download(name)
        found = StartingModel(folder, f"{name} at {folder.name[:12]}", f"{name.rpartition('/')[2]}-finetuned")
    missing = [pattern for pattern in FILES if not any(folder.glob(pattern))]
    if missing:
        raise UserError(
            f"--model {name}: is no exported model ({', '.join(missing)} missing in {folder}); give RUN/model, or make "
            "one of a checkpoint: python3 -m tools.checkpoints export CHECKPOINT OUT"
        )
    check_model_folder(folder, f"--model {name}")
    return found


def _run_name(folder: Path) -> str:
    """After the run of an exported model, or after its folder."""
    whose = folder.resolve().parent if folder.name == MODEL_DIR_NAME else folder
    return f"{whose.name}-finetuned"


def load_model_tokenizer(folder: Path) -> DocumentTokenizer:
    """Its tokenizer, which puts BOS before a document if that of the folder does so.

    Raises:
        UserError: when it cannot be read, or names no EOS, without which no answer would end.
    """
    with reading(f"--model {folder}: its tokenizer", remedy="copy or export the model again"):
        bos_token = read_special_tokens(folder).get("bos_token")
        first = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").tokens[:1]
    return load_document_tokenizer(str(folder), add_bos=first == [bos_token], flag="--model")


def _download(hub_id: str) -> Path:
    # Here: the Hub's client takes 0.2 s to import, which only a model of the Hub needs.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.safetensors", "*.json", "*.jinja"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--model {hub_id}: is no folder, and the Hub does not give it ({reason})") from None
