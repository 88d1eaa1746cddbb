"""A disk that fails in the ways of real ones, in front of whole programs: a library that is preloaded into them."""

import errno
from pathlib import Path


def odd_disk(library: Path, place: Path, **failures: str) -> dict[str, str]:
    """The environment in which calls fail under `place`: odd_disk(library, place, flock="ENOLCK")."""
    variables = {f"ODD_{call.upper()}": str(getattr(errno, name)) for call, name in failures.items()}
    return {"LD_PRELOAD": str(library), "ODD_PLACE": str(place), **variables}
