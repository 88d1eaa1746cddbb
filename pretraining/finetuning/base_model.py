"""Find the model to fine-tune: a folder of safetensors and JSON, here or on the Hub."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from pretraining.cli.arguments.tokenizer import HUB_ID
from pretraining.data.tokenize.tokenizer import DocumentTokenizer, load_document_tokenizer, read_special_tokens
from pretraining.errors import UserError, reading
from pretraining.runs.run_folder import MODEL_DIR_NAME, is_run_folder
from pretraining.runs.untrusted import check_model_folder

FILES = ("config.json", "*.safetensors", "tokenizer.json")  # required in a folder


@dataclass(frozen=True)
class BaseModel:
    """The folder of a model, its name in model cards, and the name of a run that starts from it."""

    folder: Path
    name: str
    run_name: str


def find_base_model(name: str) -> BaseModel:
    """The model of --model: a folder, a run folder, or a model of the Hub, which is downloaded. No pickle is read.

    Raises:
        UserError: when the model does not exist, or has custom code.
    """
    folder = Path(name)
    if is_run_folder(folder):
        folder /= MODEL_DIR_NAME
    found = BaseModel(folder, str(folder), _run_name(folder))
    if not folder.exists() and HUB_ID.fullmatch(name):
        folder = _download(name)
        found = BaseModel(folder, f"{name} at {folder.name[:12]}", f"{name.rpartition('/')[2]}-finetuned")
    missing = [pattern for pattern in FILES if not any(folder.glob(pattern))]
    if missing:
        raise UserError(
            f"--model {name}: not an exported model ({', '.join(missing)} missing in {folder}); use RUN/model, or "
            "export a checkpoint: python3 -m tools.checkpoints export CHECKPOINT OUT"
        )
    check_model_folder(folder, f"--model {name}")
    return found


def _run_name(folder: Path) -> str:
    """The name of the model's run or folder, and -finetuned."""
    whose = folder.resolve().parent if folder.name == MODEL_DIR_NAME else folder
    return f"{whose.name}-finetuned"


def load_model_tokenizer(folder: Path) -> DocumentTokenizer:
    """The model's tokenizer; it adds BOS if that of the folder does.

    Raises:
        UserError: when it cannot be read, or has no EOS, without which no answer would end.
    """
    with reading(f"--model {folder}: its tokenizer", remedy="copy or export the model again"):
        bos_token = read_special_tokens(folder).get("bos_token")
        first = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").tokens[:1]
    return load_document_tokenizer(str(folder), add_bos=first == [bos_token], flag="--model")


def _download(hub_id: str) -> Path:
    # Imported here: the Hub's client takes 0.2 s, which only a model of the Hub needs.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.safetensors", "*.json", "*.jinja"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--model {hub_id}: not a folder, and not found on the Hub ({reason})") from None
