"""What a compiled layer needs is looked for before anything is loaded; its kernels are cached for this user alone."""

import os
import tempfile
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.cli.errors import UserError
from pretraining.training.layers import CACHE_VARIABLE, compile_layers


def test_kernels_are_cached_where_no_other_user_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch unpickles what it finds there."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **shape))  # type: ignore[arg-type]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "torchinductor_somebody"))  # as torch does when it is imported
    compile_layers(model)
    folder = Path(os.environ[CACHE_VARIABLE])
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    monkeypatch.delenv(CACHE_VARIABLE)
    with pytest.raises(UserError, match="is not a folder that only this user can open"):
        compile_layers(model)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "chosen"))
    compile_layers(model)
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "chosen")
