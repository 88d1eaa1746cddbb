"""wandb, mlflow and trackio, asked for by --report_to: told where they write, and a resumed run goes on in theirs.

By themselves they ask for a login, name runs anew at each start, or make something on the Hub. What is set in the
environment already is left as it is.
"""

import json
import logging
import netrc
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

TRACKERS_NAME = "trackers.json"
WANDB_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")

logger = logging.getLogger(__name__)


class TrackedRun(TrainerCallback):
    """Must be made before the trackers are, and keeps in the run folder what they go on by.

    A run that goes on as it was goes on in the trackers too; one that starts, or leaves another, is a new one there.
    """

    def __init__(self, args: TrainingArguments, run_dir: Path, *, goes_on: bool) -> None:
        self._path = run_dir / TRACKERS_NAME
        self.has_trackers = bool(set(args.report_to) - {"tensorboard"})
        self._kept: dict[str, str] = {}
        if goes_on and self._path.is_file():
            with suppress(ValueError):  # of a power cut while it was written
                self._kept = json.loads(self._path.read_text(encoding="utf-8"))
        # Unlike the folder's name it belongs to one run; trackio goes on with any that has the same.
        self._kept.setdefault("name", args.run_name or f"{run_dir.resolve().name}-{secrets.token_hex(3)}")
        args.run_name = self._kept["name"]
        if "wandb" in args.report_to:
            self._set_wandb(args, run_dir)
        if "mlflow" in args.report_to:
            self._set(
                MLFLOW_EXPERIMENT_NAME=args.project, **self._kept_settings("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")
            )

    def _set_wandb(self, args: TrainingArguments, run_dir: Path) -> None:
        self._kept.setdefault("WANDB_RUN_ID", secrets.token_hex(4))
        self._set(WANDB_PROJECT=args.project, WANDB_DIR=str(run_dir), **self._kept_settings("WANDB_RUN_ID"))
        self._set(WANDB_RESUME="allow")
        if "WANDB_MODE" not in os.environ and not _has_wandb_key():
            os.environ["WANDB_MODE"] = "offline"  # it would ask for one, and eight GPUs would wait for the answer
            logger.info(
                "wandb: no key is configured, so it writes into %s/wandb; `wandb sync` sends that later, and "
                "`wandb login` or WANDB_API_KEY do so at once",
                run_dir,
            )

    def _kept_settings(self, *names: str) -> dict[str, str]:
        return {name: self._kept[name] for name in names if name in self._kept}

    @staticmethod
    def _set(**settings: str) -> None:
        for name, value in settings.items():
            os.environ.setdefault(name, value)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The trackers have begun their runs; keep which."""
        if state.is_world_process_zero and set(args.report_to) & {"wandb", "mlflow", "trackio"}:
            if "mlflow" in args.report_to and (mlflow := sys.modules.get("mlflow")) is not None:
                self._kept["MLFLOW_RUN_ID"] = mlflow.active_run().info.run_id
                if not _has_password(mlflow.get_tracking_uri()):
                    self._kept["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
            self._path.write_text(json.dumps(self._kept, indent=1) + "\n", encoding="utf-8")


def _has_password(uri: str) -> bool:
    """Whether this has a secret that belongs into the environment and not into the run folder."""
    return "@" in urlsplit(uri).netloc


def _has_wandb_key() -> bool:
    """Whether wandb finds a key where `wandb login` or a user puts one."""
    if any(os.environ.get(name) for name in WANDB_KEYS):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False
