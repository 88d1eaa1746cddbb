"""What comes from outside: a model of the Hub, and what is refused in any folder.

Only safetensors and JSON are read. Pickled weights, and code that comes with a model, do what their author wrote.
"""

import json
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError

from pretraining.cli.errors import UserError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_trusted(folder: Path, name: str) -> None:
    """Refuse a model that brings code of its own.

    Raises:
        UserError: when it does, or its JSON cannot be read.
    """
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError:
            raise UserError(f"--model {name}: {path.name} is no JSON; copy or download it again") from None
        if "auto_map" in content:
            raise UserError(
                f"--model {name}: asks for code of its own (auto_map in {path.name}), which could do anything here and "
                "is not run; take a plain Llama"
            )


def download_model(name: str, revision: str | None) -> Path:
    """Download config, tokenizer and safetensors into a folder; the token is that of HF_TOKEN or `hf auth login`.

    Raises:
        UserError: when that does not work, or the model has no safetensors.
    """
    patterns = ["*.json", "*.safetensors"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
        if not any(folder.glob("*.safetensors")):
            files = HfApi().list_repo_files(name, revision=revision)
            pickles = [file for file in files if any(Path(file).match(pattern) for pattern in PICKLES)]
            raise UserError(pickle_refusal(name, pickles[0]) if pickles else f"--model {name}: has no *.safetensors")
    except UserError:
        raise
    except HFValidationError:
        raise UserError(f"--model {name}: there is no such folder, and it is no name of the Hub; check it") from None
    except Exception as error:  # each of the client's layers has errors of its own
        reason = " ".join(str(error).split())
        raise UserError(
            f"--model {name}: cannot be loaded ({reason}); check the name, --revision and HF_TOKEN"
        ) from None
    return folder


def pickle_refusal(name: str, pickle: str) -> str:
    """Why pickled weights are not opened."""
    return (
        f"--model {name}: has pickled weights ({pickle}), which can run code when they are opened, and no safetensors; "
        "take a model with *.safetensors, or convert it where you trust it (save_pretrained)"
    )
