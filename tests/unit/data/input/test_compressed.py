"""Files in zip archives are read as separate files."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import pytest

from pretraining.data.input.documents import Document
from pretraining.data.input.find import find_inputs
from pretraining.data.input.reading import read_documents
from pretraining.errors import UserError
from tests.unit.data.input.test_reading import OPTIONS, jsonl, stories


def archive_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_files_sorted_by_name(tmp_path: Path, method: int, caplog: pytest.LogCaptureFixture) -> None:
    members = {
        "b/2.jsonl": jsonl(stories(30)),
        "a/1.jsonl.gz": gzip.compress(jsonl(stories(20))),
        "a/note.txt": b"one text",
        "__MACOSX/a/._note.txt": b"\x00\x05",
        "c.md": b"not read",
    }
    path = archive_of(tmp_path / "all.zip", members, method)
    files = find_inputs([f"wiki={path}"])
    assert [file.path for file in files] == [f"{path}/{name}" for name in ("a/1.jsonl.gz", "a/note.txt", "b/2.jsonl")]
    assert {file.source for file in files} == {"wiki"}
    assert "1 files of other formats in it are not read" in caplog.text
    documents = list(read_documents(files, OPTIONS))
    assert [d.text for d in documents if isinstance(d, Document)] == [
        *(story["text"] for story in stories(20)), "one text", *(story["text"] for story in stories(30)),
    ]  # fmt: skip
    (one,) = find_inputs([f"{path}/b/2.jsonl"])
    assert one.path == files[2].path
    assert find_inputs([str(tmp_path)]) == find_inputs([str(path)]), "also of a folder"


def test_an_archive_that_is_not_read_is_one_line(tmp_path: Path) -> None:
    encrypted = bytearray(archive_of(tmp_path / "encrypted.zip", {"a.jsonl": b"x"}).read_bytes())
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "encrypted.zip").write_bytes(encrypted)
    archive_of(tmp_path / "other.zip", {"a.jsonl": b"x"}, zipfile.ZIP_LZMA)
    archive_of(tmp_path / "nothing.zip", {"a.md": b"x", "b.parquet": b"x", "c.zip": b"x", "d.bin": b"x"})
    (tmp_path / "no.zip").write_bytes(b"not an archive")
    twice = archive_of(tmp_path / "twice.zip", {"a.txt": b"x", "b.txt": b"y"})
    twice.write_bytes(twice.read_bytes().replace(b"b.txt", b"a.txt"))
    expected = {
        "encrypted": "a.jsonl in it is encrypted; unzip it with its password",
        "other": "a.jsonl in it is not deflated; unzip it",
        "nothing": "the archive has no .jsonl, .ndjson, .json, .txt file",
        "no": "is not a readable zip archive (File is not a zip file); unzip it",
        "twice": "has a file twice; unzip it",
    }
    with pytest.raises(UserError) as caught:
        find_inputs([str(tmp_path / f"{name}.zip") for name in expected])
    for problem, (name, reason) in zip(caught.value.problems, expected.items(), strict=True):
        assert problem.startswith(f"--data_files {tmp_path / name}.zip: {reason}")


def test_archives_without_text_in_a_folder_are_other_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(stories(3)))
    archive_of(tmp_path / "images.zip", {"1.jpg": b"x", "b.parquet": b"x"})
    encrypted = bytearray(archive_of(tmp_path / "encrypted.zip", {"b.jsonl": b"x"}).read_bytes())
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "encrypted.zip").write_bytes(encrypted)
    assert [Path(file.path).name for file in find_inputs([str(tmp_path)])] == ["a.jsonl"]
    assert "2 files of other formats in it are not read" in caplog.text
    assert "encrypted.zip: is encrypted, so it is not read" in caplog.text
    (tmp_path / "cut.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"cut\.zip: is not a readable zip archive"):
        find_inputs([str(tmp_path)])


@pytest.mark.parametrize("folder", ["", "all"])
def test_an_archive_beside_what_was_unpacked_from_it_is_reported(tmp_path: Path, folder: str) -> None:
    archive_of(tmp_path / "all.zip", {"a.jsonl": jsonl(stories(3))})
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "a.jsonl").write_bytes(jsonl(stories(2)))
    assert len(find_inputs([str(tmp_path)])) == 2, "other text of the same name"
    (tmp_path / folder / "a.jsonl").write_bytes(jsonl(stories(3)))
    with pytest.raises(UserError, match=r"all\.zip/a\.jsonl: is unpacked beside its archive, as .*a\.jsonl, and would"):
        find_inputs([str(tmp_path)])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_says_where(tmp_path: Path, method: int) -> None:
    path = archive_of(tmp_path / "a.zip", {"a.jsonl": jsonl(stories(3000))}, method)
    content = bytearray(path.read_bytes())
    content[5000:5010] = b"}" * 10
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip/a\.jsonl: is truncated or corrupt after line [\d,]+ \("):
        list(read_documents(find_inputs([str(path)]), OPTIONS))


def test_a_member_whose_header_lies_about_its_size_is_damaged(tmp_path: Path) -> None:
    """The directory says 10 bytes; there are a million, which are not read."""
    path = archive_of(tmp_path / "a.zip", {"a.txt": b"x" * (1 << 20)})
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError, match="is truncated or corrupt after line"):
        list(read_documents(find_inputs([str(path)]), OPTIONS))


def test_thousands_of_members_are_opened_by_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive_of(
        tmp_path / "many.zip", {f"{n}.jsonl": json.dumps({"text": f"t{n}"}).encode() for n in range(3000)}
    )
    opened: list[object] = []
    real = zipfile.ZipFile

    def counting(file: str | Path | io.BufferedReader) -> zipfile.ZipFile:
        opened.append(file)
        return real(file)

    monkeypatch.setattr(zipfile, "ZipFile", counting)
    assert len(list(read_documents(find_inputs([str(path)]), OPTIONS))) == 3000
    assert len(opened) == 1
