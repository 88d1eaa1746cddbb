import json
from pathlib import Path

from pretraining.data.tokenize.reference import ids_of, open_reference, read_special_tokens
from tests.unit.data.tokenize.vocabularies import small


def test_the_text_of_a_control_token_is_text() -> None:
    pipeline = json.loads(small().to_str())
    flags = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    pipeline["added_tokens"] = [{"id": 900, "content": "</s>", **flags}]
    content = json.dumps(pipeline).encode()
    ordinary, special = open_reference(content, {}), open_reference(content, {"eos_token": "</s>"})
    assert ordinary.token_to_id("</s>") in ids_of(ordinary, "ab</s>")
    assert special.token_to_id("</s>") not in ids_of(special, "ab</s>")


def test_special_tokens_of_both_files_and_both_forms(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</s>", "unk_token": "<unk>"}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}, "pad_token": null, "n": 1}')
    assert read_special_tokens(tmp_path) == {"eos_token": "<end>", "unk_token": "<unk>"}
