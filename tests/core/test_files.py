from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from vitdomains.core.files import file_sha256, is_inside, is_plain_name, new_folder, write_atomically


def test_a_file_is_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read as a whole"))
    assert file_sha256(file) == file_sha256(str(file)) == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target) as part:
        (part / "sub").mkdir()
        (part / "sub" / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), new_folder(target) as part:
        (part / "b").write_text(str(1 / 0))
    assert (target / "sub" / "a").read_text() == "1"
    with new_folder(target) as part:
        (part / "b").write_text("2")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "b"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "C:x", "a\0b", "/etc"])
def test_names_that_leave_a_folder_are_not_plain(name: str) -> None:
    assert not is_plain_name(name)


def test_relative_names_stay_inside() -> None:
    assert is_inside("report/plots/roc.png") and is_inside("a") and is_plain_name("a.b c")
    assert not any(map(is_inside, ["", "/a", "a/../../b", "..", "C:/a", "a\\..\\b", "//server/x", "a/\0"]))
