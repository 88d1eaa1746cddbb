"""Checkpoints that somebody forged: none of their pickles runs anything or fills the memory, and each is one line."""

import importlib.util
import json
import pickle
import resource
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum
from torch.serialization import get_unsafe_globals_in_checkpoint

from pretraining.errors import UserError
from pretraining.generation.load_model import load_model
from pretraining.runs.checksums import COMPLETE_NAME, record_file, write_manifest
from pretraining.runs.export.from_checkpoint import export_checkpoint
from pretraining.runs.model_source import find_model
from pretraining.runs.untrusted import (
    MAX_PICKLE_BYTES,
    NUMBER_TYPES,
    SAFE_GLOBALS,
    TENSOR_GLOBALS,
    load_pickle,
    reading_small,
)
from pretraining.training.checkpoint.parts import CheckpointPart, DeferredCheckpointEngine, as_saved
from pretraining.training.checkpoint.reshard import check_can_reshard
from tests.adversarial.drivers import forging
from tests.adversarial.drivers.forging import calling, touching, write_archive, write_zip
from tests.conftest import PROJECT_DIR, Done, assert_one_error
from tests.programs.launching import run_preloaded, train, try_to_train

pytestmark = [pytest.mark.launch, pytest.mark.filterwarnings("ignore:Detected pickle protocol")]

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
SCALER = "deepspeed.runtime.fp16.loss_scaler"
STAGE = "deepspeed.runtime.zero.config"
FRAGMENT = "deepspeed.utils.tensor_fragment"
FEW_BYTES = 100 << 20  # of memory, for an archive that claims gigabytes


@pytest.fixture(scope="module")
def checkpoints(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of stage 3 and one of stage 1."""
    folder = tmp_path_factory.mktemp("checkpoints")
    runs: dict[str, tuple[str, list[object]]] = {
        "adamw": ("2 ranks", []),
        "zero1": ("2 ranks", ["--bf16", "true", "--deepspeed", PROJECT_DIR / "ds_config_zero1.json"]),
    }
    return {name: trained(name, *how, sample_store, folder) for name, how in runs.items()}


@pytest.fixture(scope="module")
def more_checkpoints(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each optimizer, precision and offload, of one process and two, in as few runs as that takes."""
    folder = tmp_path_factory.mktemp("more-checkpoints")
    offload, offload_optimizer = (
        ["--deepspeed", PROJECT_DIR / f"ds_config_offload{name}.json"] for name in ("", "_optimizer")
    )
    runs: dict[str, tuple[str, list[object]]] = {
        "adamw_bf16": ("2 ranks", ["--optim", "adamw_bf16", "--bf16", "true", *offload_optimizer]),
        "muon": ("1 rank", ["--optim", "muon", "--bf16", "true", *offload]),
        "fp16": ("1 rank", ["--fp16"]),
        "zero2": ("1 rank", ["--deepspeed", PROJECT_DIR / "ds_config_zero2_offload_optimizer.json"]),
    }
    if HAS_BITSANDBYTES:
        runs["adamw_8bit"] = ("1 rank", ["--optim", "adamw_8bit"])
    return {name: trained(name, *how, sample_store, folder) for name, how in runs.items()}


def trained(name: str, ranks: str, flags: list[object], store: Path, folder: Path) -> Path:
    script = "tests/faults/drivers/fp16_run.py" if name == "fp16" else "pretrain.py"
    small = ["--eval_strategy", "no", "--max_steps", 2, "--global_batch_tokens", 256]
    train(ranks, store, folder / name, *flags, *small, script=script)
    return folder / name / "checkpoint-2"


def shards_of(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.glob("global_step*/*.pt"))


# That what is named is allowed: each save and each resume of any other test, which refuse it otherwise.
@pytest.mark.long
def test_checkpoints_name_what_is_allowed_and_nothing_else_is(
    checkpoints: dict[str, Path], more_checkpoints: dict[str, Path]
) -> None:
    shards = [
        path for found in (checkpoints, more_checkpoints) for folder in found.values() for path in shards_of(folder)
    ]
    unsafe = {name for path in shards for name in get_unsafe_globals_in_checkpoint(str(path))}
    named_now = SAFE_GLOBALS - {f"{STAGE}.ZeroStageEnum"}
    assert unsafe == named_now
    named = {name for path in shards for name in forging.names_in(path)}
    types = {f"torch.{name}Storage" for name in ("Float", "BFloat16", "Half")} | {"torch.float16"}
    assert named - {"torch.ByteStorage"} == TENSOR_GLOBALS | named_now | types
    assert ("torch.ByteStorage" in named) == HAS_BITSANDBYTES
    assert all(NUMBER_TYPES.fullmatch(name) for name in types)
    for path in shards:
        ours, plain = load_pickle(path, mmap=False), torch.load(path, weights_only=False)
        assert repr(plain.keys()) == repr(ours.keys())
        if "optimizer_state_dict" in plain:
            ours, plain = ours["optimizer_state_dict"], plain["optimizer_state_dict"]
            assert ours.keys() == plain.keys()
            assert ours.get("zero_stage") == plain.get("zero_stage")
            scalers = [getattr(content.get("loss_scaler"), "__dict__", {}) for content in (ours, plain)]
            assert scalers[0] == scalers[1]
            for name in ("optimizer_state_dict", "base_optimizer_state", "param_slice_mappings", "group_paddings"):
                assert repr(ours.get(name)) == repr(plain.get(name))


def test_an_enum_is_saved_as_its_value(tmp_path: Path) -> None:
    """Python 3.11.2 pickles a member as a call of getattr, which no shard may have: nothing could be saved."""
    torch.save(as_saved({"zero_stage": ZeroStageEnum.weights}), tmp_path / "x.pt")
    assert load_pickle(tmp_path / "x.pt", mmap=True) == {"zero_stage": 3}
    assert forging.names_in(tmp_path / "x.pt") == set()


def assert_refused(path: Path, *parts: str) -> None:
    for mmap in (True, False):
        with pytest.raises(UserError) as refused:
            load_pickle(path, mmap=mmap)
        assert len(refused.value.problems) == 1
        assert "\n" not in str(refused.value)
        assert str(refused.value).startswith(f"{path}:")
        assert all(part in str(refused.value) for part in parts), refused.value


# What a pickle may not name: modules of the allowed classes, all of torch's loaders, what torch itself would allow.
FOREIGN = [
    (SCALER, "torch.os.system"),
    (SCALER, "logger.info"),
    (SCALER, "LossScaler.__init__.__globals__"),
    (SCALER, "log_dist"),
    (SCALER, "CreateLossScaler"),
    (SCALER, "LossScalerBase"),
    (SCALER + ".LossScaler", "__init__"),
    ("deepspeed.runtime.fp16", "loss_scaler.torch.os.system"),
    (STAGE, "ZeroStageEnum.__class__"),
    (STAGE, "sys.modules"),
    (STAGE, "read_zero_config_deprecated"),
    (FRAGMENT, "tensor_fragment"),
    (FRAGMENT, "get_hp_fragment_mapping"),
    (FRAGMENT + ".fragment_address", "__init__"),
    (FRAGMENT, "fragment_address.__init__.__globals__"),
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("__builtin__", "eval"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("runpy", "run_path"),
    ("pickle", "loads"),
    ("torch", "load"),
    ("torch.serialization", "load"),
    ("torch.hub", "load"),
    ("torch.utils.cpp_extension", "load"),
    ("torch._utils", "_import_dotted_name"),
    ("torch._utils", "_rebuild_wrapper_subclass"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("numpy", "load"),
    ("builtins", "bytearray"),
    ("_codecs", "encode"),
    ("collections", "Counter"),
]


@pytest.mark.parametrize("protocol", forging.PROTOCOLS)
def test_no_pickle_runs_a_shell(protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    write_archive(tmp_path / "x.pt", touching(canary, protocol))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pt", weights_only=True)
    assert_refused(tmp_path / "x.pt")
    assert not canary.exists()
    pickle.loads(touching(canary, protocol))
    assert canary.exists(), "the attack is one"


@pytest.mark.parametrize("protocol", [2, 4])
def test_no_other_name_is_looked_up(protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for number, (module, name) in enumerate(FOREIGN):
        path = tmp_path / f"{number}.pt"
        write_archive(path, calling(module, name, f"touch {canary}", protocol=protocol))
        assert_refused(path, f"its pickle names {module}.{name}, which DeepSpeed's shards do not")
    assert not canary.exists()


def test_no_chain_of_allowed_names_builds_anything_else(tmp_path: Path) -> None:
    """REDUCE, NEWOBJ, BUILD, and the opcodes that name or call by other ways."""
    canary, path = tmp_path / "canary", tmp_path / "x.pt"
    stage, scaler = f"c{STAGE}\nZeroStageEnum\n".encode(), f"c{SCALER}\nLossScaler\n".encode()
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ%ctQ"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J%oJ%n\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    )

    def cut(count: int, offset: int, number: int) -> bytes:
        """A tensor of the four bytes that the archive has."""
        values = {b"%c": count, b"%o": offset, b"%n": number}
        words = tensor
        for name, value in values.items():
            words = words.replace(name, value.to_bytes(4, "little"))
        return words

    refused = {
        "a member of an enum is changed": stage + b"K\x03\x85R}X\x07\0\0\0_value_K\0sb",
        "a class is changed": scaler + b"}X\x08\0\0\0__init__Nsb",
        "a method is called": stage + b"X\x02\0\0\0lsR",
        "an attribute is looked up": stage + b"X\x06\0\0\0systemb",
        "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93",
        "INST": b"(S'touch x'\nios\nsystem\n",
        "OBJ": b"(" + scaler + b"o",
        "EXT1": b"\x82\x01",
        "NEWOBJ_EX": scaler + b")}\x92",
        "PERSID": b"Pstorage\n",
        "another persistent id": b"(X\x06\0\0\0moduleX\x02\0\0\0ostQ",
        "more numbers than the file has": cut(1 << 28, 0, 1 << 28),
        "a part behind the file": cut(1, (1 << 31) - 1, 1),
        "a part behind the record": cut(1, 1, 1),
        "a record that is not there": cut(1, 0, 1).replace(b"X\x01\0\0\x000", b"X\x01\0\0\x009"),
        "nothing": b"",
        "an empty stack": b"0",
    }
    for attack, words in refused.items():
        write_archive(path, b"\x80\x02" + words + b".", data_0=b"\0" * 4)
        try:
            assert_refused(path)
        except pytest.fail.Exception:
            pytest.fail(f"not refused: {attack}")
    write_archive(path, b"\x80\x02" + cut(50, 0, 50) + b".", data_0=b"\0" * 4)
    with pytest.raises(UserError, match=r"record size \(4 bytes\)"):  # mapped, they are other bytes of the same file
        load_pickle(path, mmap=False)
    write_archive(path, b"\x80\x02" + cut(1, 0, 1) + b".", data_0=b"\0" * 4)
    assert load_pickle(path, mmap=True) == 0
    inert = calling(SCALER, "LossScaler", 1.0).removesuffix(b".") + b"}X\x0c\0\0\0has_overflow" + scaler + b"sb."
    write_archive(path, inert)
    assert vars(load_pickle(path, mmap=True))["has_overflow"].__name__ == "LossScaler", "data, and nothing else"
    assert not canary.exists()


def tar(path: Path, canary: Path) -> None:
    (path.parent / "pickle").write_bytes(touching(canary))
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "pickle", "pickle")


def legacy(path: Path, _: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


def script(path: Path, canary: Path) -> None:
    write_archive(path, touching(canary), constants_pkl=b"")


NOTHING, OF_TORCH_ALONE = b"\x80\x02N.", calling("builtins", "bytearray", 4)
ARCHIVES: dict[str, Callable[[Path, Path], object]] = {
    "a pickle": lambda path, canary: path.write_bytes(touching(canary)),
    "a tar of torch 0.1": tar,
    "without an archive": legacy,
    "a script": script,
    "nothing": lambda path, _: path.touch(),
    "text": lambda path, _: path.write_text("weights"),
    "an end alone": lambda path, _: path.write_bytes(b"\0" * 76 + b"PK\5\6" + b"\0" * 18),
    "two pickles": lambda path, _: write_zip(
        path, ("a/version", b"3\n"), ("a/b/data.pkl", NOTHING), ("a/data.pkl", OF_TORCH_ALONE)
    ),
    "a pickle twice": lambda path, _: write_zip(
        path, ("a/version", b"3\n"), ("a/DATA.pkl", OF_TORCH_ALONE), ("a/data.pkl", NOTHING)
    ),
    "no pickle": lambda path, _: write_zip(path, ("a/version", b"3")),
    "deflated": lambda path, _: write_zip(path, ("a/data.pkl", b"\x80\x02N."), deflated=True),
    "a bomb": lambda path, _: write_zip(path, ("a/data.pkl", b"\x80\x02" + b"N0" * (1 << 26) + b"N."), deflated=True),
    "a bomb beside it": lambda path, _: write_zip(
        path, ("a/data.pkl", b"\x80\x02N."), ("a/byteorder", b"\0" * (1 << 27)), deflated=True
    ),
    "a long pickle": lambda path, _: write_zip(path, ("a/data.pkl", b"N0" * (MAX_PICKLE_BYTES // 2) + b"N.")),
}


@pytest.mark.parametrize("write", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_other_archives_than_torch_writes(write: Callable[[Path, Path], object], tmp_path: Path) -> None:
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    write(path, canary)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < FEW_BYTES
    assert not canary.exists()


def test_of_two_pickles_torch_reads_the_other(tmp_path: Path) -> None:
    """So that it is the number of pickles for which the archive is refused."""
    path = tmp_path / "x.pt"
    write_zip(path, ("a/version", b"3\n"), ("a/data.pkl", NOTHING))
    assert load_pickle(path, mmap=True) is None
    ARCHIVES["two pickles"](path, tmp_path)
    assert torch.load(path, weights_only=True) == bytearray(4)
    assert_refused(path, "not an archive as torch.save writes it")


def test_a_directory_that_lies(tmp_path: Path) -> None:
    """Sizes that the file does not have, and a second directory that only torch would read."""
    good, bad = tmp_path / "good.pt", tmp_path / "x.pt"
    write_archive(good, b"\x80\x02X\x04\0\0\0fine.")
    assert load_pickle(good, mmap=True) == "fine"
    for name in ("data.pkl", "byteorder"):
        for num_bytes in (0, 1, 1000, (1 << 32) - 2):
            shutil.copy(good, bad)
            forging.declare(bad, name, num_bytes=num_bytes)
            assert_refused(bad, "cannot be read")
    content = good.read_bytes()
    for length in range(0, len(content), 97):
        bad.write_bytes(content[:length])
        assert_refused(bad, "cannot be read")
    evil = tmp_path / "evil.pt"
    write_archive(evil, b"\x80\x02X\x04\0\0\0evil.")
    forging.hide(evil, good, bad)
    assert torch.load(bad, weights_only=True) == "evil"
    try:
        with zipfile.ZipFile(bad) as archive:
            assert b"fine" in archive.read("good/data.pkl"), "two directories"
        assert_refused(bad, "not an archive as torch.save writes it")
    except zipfile.BadZipFile:  # from Python 3.13 on, zipfile sees by itself that there are two
        assert_refused(bad, "cannot be read")
    bad.write_bytes(b"x" * 64 + content)
    assert_refused(bad)


def copied(checkpoint: Path, folder: Path) -> Path:
    """A copy of a run with this checkpoint alone, without weights that everybody reads."""
    run_dir = folder / "run"
    left_out = shutil.ignore_patterns("model", "model.safetensors", "tensorboard", "run.lock")
    shutil.copytree(checkpoint.parent, run_dir, ignore=left_out)
    return run_dir / checkpoint.name


def complete(checkpoint: Path) -> None:
    """As if it had been saved as it is."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE_NAME]
    num_processes = json.loads((checkpoint / COMPLETE_NAME).read_text())["num_processes"]
    records = [record_file(checkpoint, path) for path in files]
    write_manifest(checkpoint, records, step=2, num_processes=num_processes)


def forged(checkpoint: Path, folder: Path, name: str, pickled: bytes) -> Path:
    """A copy in which one file is forged and everything else fits."""
    copy = copied(checkpoint, folder)
    (path,) = copy.rglob(name)
    path.unlink()
    write_archive(path, pickled)
    complete(copy)
    return copy


OPTIMIZER = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
ENGINE = "zero_pp_rank_1_mp_rank_00_model_states.pt"
ENGINE_BELOW_STAGE_3 = "mp_rank_00_model_states.pt"


@pytest.mark.guarantee("Forged checkpoints of every pickle protocol execute nothing.")
def test_every_reader_refuses_a_forged_shard(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Export, sampling and whatever else loads a model, and a resume in another number of processes."""
    canary, config = tmp_path / "canary", {"zero_optimization": {"stage": 3}}
    dotted = calling(SCALER, "torch.os.system", f"touch {canary}", protocol=4)
    files = (("adamw", OPTIMIZER), ("adamw", ENGINE), ("zero1", f"bf16_{OPTIMIZER}"), ("zero1", ENGINE_BELOW_STAGE_3))
    for number, (of, name) in enumerate(files):
        checkpoint = forged(checkpoints[of], tmp_path / str(number), name, dotted)
        for read in (
            lambda checkpoint=checkpoint: export_checkpoint(checkpoint, tmp_path / "out", dtype=torch.float32),
            lambda checkpoint=checkpoint: load_model(find_model(str(checkpoint))),
            lambda checkpoint=checkpoint: load_model(find_model(str(checkpoint.parent))),
            lambda checkpoint=checkpoint: check_can_reshard(checkpoint, config, num_processes=1),
        ):
            with pytest.raises(UserError, match="its pickle names") as refused:
                read()
            assert str(refused.value).startswith(f"{next(checkpoint.rglob(name))}: ")
        assert not (tmp_path / "out").exists()
    for pattern in ("scheduler.pt", "rng_state*.pth"):
        (tmp_path / pattern.replace("*", "_0")).write_bytes(touching(canary))
        with pytest.raises(UserError, match="cannot be read"), reading_small(tmp_path, pattern):
            pytest.fail("the Trainer would read it")
    assert not canary.exists()


def test_deepspeed_and_the_trainer_unpickle_nothing(
    checkpoints: dict[str, Path], sample_store: Path, tmp_path: Path
) -> None:
    """A resume in as many processes, and the best model at its end; whatever the checkpoint calls its latest save."""
    checkpoint = copied(checkpoints["adamw"], tmp_path)
    (checkpoint / "latest").write_text("../../elsewhere")
    complete(checkpoint)
    flags = ["--resume", checkpoint, "--global_batch_tokens", 256, "--max_steps", 4]
    flags += ["--load_best_model_at_end", "true", "--eval_strategy", "steps", "--eval_steps", 2, "--save_steps", 2]
    train("2 ranks", sample_store, tmp_path / "new", *flags, script="tests/adversarial/drivers/strict_run.py")


def test_what_a_resume_would_refuse_is_not_saved(tmp_path: Path) -> None:
    parts: list[CheckpointPart] = []
    engine = DeferredCheckpointEngine(parts.append)
    for content in ({"loss_scaler": torch.zeros(1)}, {"loss_scaler": tmp_path}):
        engine.save(content, str(tmp_path / "global_step1/x.pt"))
    good, bad = parts
    assert good.write(good.content) == [tmp_path / "global_step1/x.pt"]
    with pytest.raises(UserError, match=r"its pickle names pathlib\.(_local\.)?PosixPath"):
        bad.write(bad.content)


def generate(model: Path) -> Done:
    words = [PROJECT_DIR / "generate.py", "--model", model, "--prompt", "The", "--max_new_tokens", 2]
    return run_preloaded(1, words, {"HF_HUB_OFFLINE": "1"})


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (OPTIMIZER, "its pickle names"),
        pytest.param(ENGINE, "its pickle names", marks=pytest.mark.long),  # as the optimizer's
        ("scheduler.pt", "cannot be"),
    ],
)
def test_programs_say_so_in_one_line(
    name: str, part: str, checkpoints: dict[str, Path], sample_store: Path, tmp_path: Path
) -> None:
    """generate.py; pretrain.py of as many processes as saved it, which DeepSpeed itself loads; its small files."""
    canary = tmp_path / "canary"
    flags = ["--eval_strategy", "no", "--global_batch_tokens", 256, "--max_steps", 2]
    checkpoint = forged(checkpoints["adamw"], tmp_path / name, name, touching(canary))
    done = try_to_train("2 ranks", sample_store, tmp_path / name / "new", *flags, "--resume", checkpoint)
    assert_one_error(done, f"{name}: {part}")
    assert done.returncode == 2
    if name == OPTIMIZER:
        assert_one_error(generate(tmp_path / OPTIMIZER / "run"), f"{OPTIMIZER}: its pickle names")
    assert not canary.exists()
