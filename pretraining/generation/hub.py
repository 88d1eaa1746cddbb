"""What comes from outside: a model of the Hub, and what is refused in any folder.

Only safetensors and JSON are read. Pickled weights, and code that comes with a model, do what their author wrote.
"""

from pathlib import Path

from pretraining.cli.arguments.preprocess import HUB_ID
from pretraining.errors import UserError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def download_model(name: str, revision: str | None) -> Path:
    """Download config, tokenizer and safetensors into a folder; the token is that of HF_TOKEN or `hf auth login`.

    Raises:
        UserError: when that does not work, or the model has no safetensors.
    """
    if not HUB_ID.fullmatch(name):
        raise UserError(
            f"--model {name}: there is no such folder, and it is no name of the Hub (USER/NAME); check the path"
        )
    # Here: the Hub's client takes 0.2 s to import, which only a model of the Hub needs.
    from huggingface_hub import HfApi, snapshot_download

    patterns = ["*.json", "*.safetensors"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
        if not any(folder.glob("*.safetensors")):
            files = HfApi().list_repo_files(name, revision=revision)
            pickles = [file for file in files if any(Path(file).match(pattern) for pattern in PICKLES)]
            raise UserError(pickle_refusal(name, pickles[0]) if pickles else f"--model {name}: has no *.safetensors")
    except UserError:
        raise
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
