"""Open files of unknown origin so that nothing in them runs.

A checkpoint holds pickles, which can call anything. `load_pickle` is the only place of this project that unpickles:
torch does it with `weights_only=True`, and the pickle may name only what DeepSpeed's shards consist of. The archive
around it is checked first, because its directory determines how much memory torch allocates.
"""

import json
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretraining.errors import UserError, reading

# All names in the pickles of DeepSpeed's shards: tensor constructors, number types and four classes. torch's own list
# has `_codecs.encode` and `bytearray`, with which a pickle of 100 bytes fills any memory.
TENSOR_GLOBALS = frozenset({"collections.OrderedDict", "torch.Size", "torch._utils._rebuild_tensor_v2"})
NUMBER_TYPES = re.compile(r"torch\.(?:[A-Z]\w+Storage|bool|b?float\d+|u?int\d+)")
SAFE_GLOBALS = frozenset(
    {
        "deepspeed.runtime.zero.config.ZeroStageEnum",  # in checkpoints of earlier versions
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.utils.tensor_fragment.fragment_address",  # below stage 3: where weights are in the flat buffers
    }
)
MAX_PICKLE_BYTES = 16 << 20  # 200 bytes per tensor: those of Llama-2-7B take 60 KB
ARCHIVE_END_BYTES = 98  # what torch.save writes after the directory, always in zip64

KERNEL_FIELDS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
MODEL_INDEX_NAME = "model.safetensors.index.json"


def load_pickle(path: Path, *, mmap: bool) -> Any:
    """Load a shard of a checkpoint. With `mmap` tensors are memory-mapped: unused ones are not read.

    Raises:
        UserError: when it cannot be read, or names anything that DeepSpeed's shards do not.
    """
    import torch  # here: JSON of a model is checked before torch is imported

    with reading(f"{path}:", remedy="use another checkpoint"):
        _check_globals(path, _pickle_of(path))
        with torch.serialization.safe_globals(_safe_objects()):
            return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)


@contextmanager
def reading_small(checkpoint: Path, pattern: str) -> Iterator[None]:
    """Check the archives of files that the Trainer then loads with `weights_only=True`.

    Raises:
        UserError: when one cannot be read.
    """
    with reading(f"{checkpoint / pattern}:", remedy="use another checkpoint"):
        for path in checkpoint.glob(pattern):
            _pickle_of(path)
        yield


def _safe_objects() -> list[Any]:
    # Imported here, because DeepSpeed takes a second to import and other sources of weights do not need it.
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.utils.tensor_fragment import fragment_address

    # A number stands in for ZeroStageEnum, which it equals: a pickle could change the enum's members for all.
    return [(int, "deepspeed.runtime.zero.config.ZeroStageEnum"), LossScaler, DynamicLossScaler, fragment_address]


def _pickle_of(path: Path) -> bytes:
    """The pickle in an archive of torch.save.

    Raises:
        ValueError: when torch.save cannot have written it: an archive of kilobytes could contain gigabytes.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        pickles = [record for record in records if record.filename.lower().endswith("/data.pkl")]  # torch ignores case
        small = [record for record in records if "/data/" not in record.filename]
        is_as_written = (
            _directory_offset(path) == archive.start_dir
            and all(record.file_size == record.compress_size for record in records)  # not deflated
            and sum(record.file_size for record in records) <= path.stat().st_size
            and sum(record.file_size for record in small) <= MAX_PICKLE_BYTES
            and len(pickles) == 1
        )
        if not is_as_written:
            raise ValueError("not an archive as torch.save writes it")
        return archive.read(pickles[0])


def _directory_offset(path: Path) -> int | None:
    """Where torch reads the directory of an archive, None if it could be at two places.

    zipfile does not look at the offset of the zip64 record: it would read one directory and torch another.
    """
    with path.open("rb") as file:
        record_offset = file.seek(-ARCHIVE_END_BYTES, os.SEEK_END)
        end = file.read()
    directory_offset, found_offset = struct.unpack_from("<48xQ8xQ", end)
    return directory_offset if found_offset == record_offset else None


def _check_globals(path: Path, pickled: bytes) -> None:
    named = {str(argument).replace(" ", ".") for op, argument, _ in pickletools.genops(pickled) if op.name == "GLOBAL"}
    foreign = [name for name in sorted(named - TENSOR_GLOBALS - SAFE_GLOBALS) if not NUMBER_TYPES.fullmatch(name)]
    if foreign:
        raise UserError(
            f"{path}: its pickle names {foreign[0]}, which DeepSpeed's shards do not; not loaded, because "
            "that could run code here"
        )


def check_no_code(fields: Mapping[str, Any], place: str) -> None:
    """Reject a config that requests code of its author, or a kernel of the Hub, which is compiled code.

    transformers runs the first when a model is loaded with `trust_remote_code`, and an export would pass it on; it
    downloads the second where the package `kernels` is installed.

    Raises:
        UserError: when it does.
    """
    asked = [name for name in fields if name == "auto_map" or (name in KERNEL_FIELDS and "/" in str(fields[name]))]
    if asked:
        raise UserError(
            f"{place}: asks for custom code ({asked[0]}), which is not run here; if it is a plain Llama, "
            f"remove {asked[0]} from a copy of it"
        )


def check_model_folder(folder: Path, place: str) -> None:
    """Reject a model that has custom code, or whose index names files outside of its folder.

    Raises:
        UserError: when it does, or its JSON cannot be read.
    """
    for name in ("config.json", "tokenizer_config.json"):
        check_no_code(_read_object(folder / name, place), f"{place}: {name}")
    weight_map = _read_object(folder / MODEL_INDEX_NAME, place).get("weight_map", {})
    named = weight_map.values() if isinstance(weight_map, dict) else ["weight_map"]
    outside = [name for name in named if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors")]
    if outside:
        raise UserError(
            f"{place}: {MODEL_INDEX_NAME} names {outside[0]!r}, which is not a *.safetensors file of its folder; "
            "copy or download the model again"
        )


def _read_object(path: Path, place: str) -> dict[str, Any]:
    """A JSON object, empty if the file does not exist."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{place}: {path.name} is not a JSON object; copy or download it again")
    return content
