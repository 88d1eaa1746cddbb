"""--report_to names trackers that are packages of their own: whether they are there is seen before anything starts."""

import importlib.util
from collections.abc import Iterator, Sequence

# The Trainer's names, with the package that has to be installed where it is called otherwise.
PACKAGES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "kubeflow": "kubeflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
}


def tracker_problems(report_to: Sequence[str]) -> Iterator[str]:
    """What is wrong with --report_to; "all" means those that are installed."""
    for name in report_to:
        if name not in (*PACKAGES, "all"):
            yield f"--report_to {name}: is none of {', '.join(PACKAGES)}, all, none"
        elif name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            yield f"--report_to {name}: it is not installed; pip install {PACKAGES[name]}, or leave it out"
