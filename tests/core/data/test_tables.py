"""Tables from other people's programs: encodings, separators, and identities that are no numbers."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pandas as pd
import pytest

from vitdomains.core.data.tables import as_text, label_columns, local_path, read_list, read_table, read_text
from vitdomains.core.errors import ManifestError

ROWS = "file,label\r\na.png,Strauß\r\nb.png,NA\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_any_encoding_and_separator(tmp_path: Path, encoding: str, separator: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(ROWS.replace(",", separator).encode(encoding))
    table = read_table(path, ("file", "label"), text=("file", "label"))
    assert table.to_dict("list") == {"file": ["a.png", "b.png"], "label": ["Strauß", "NA"]}


def test_windows_letters_are_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "t.csv").write_bytes("label\nforêt\n".encode("cp1252"))
    with caplog.at_level(logging.WARNING):
        assert read_text(tmp_path / "t.csv") == "label\nforêt\n"
    assert "read as Windows-1252" in caplog.text


def test_excel_says_its_separator_and_writes_decimal_commas(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sep=;\nid;lon;note\n1;12,5;a,b\n2;13,25;c\n")
    table = read_table(tmp_path / "t.csv", ("id",), text=("id",))
    assert table["lon"].tolist() == [12.5, 13.25] and table["note"].tolist() == ["a,b", "c"]


def test_a_comma_in_a_quoted_name_or_a_semicolon_in_a_cell_is_no_separator(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('path,"findings; all",age\na.png,mass; effusion,7\n')
    assert list(read_table(tmp_path / "t.csv", ("path",)).columns) == ["path", "findings; all", "age"]


def test_identities_are_texts_or_integers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "id,crop,zip,ratio,flag,none\n1e5,3301010900,01307,0.5,True,\n007,,04109,NA,False,\n"
    )
    table = read_table(tmp_path / "t.csv", text=("id",))
    assert table["id"].tolist() == ["1e5", "007"]
    assert as_text(table["crop"]).tolist() == ["3301010900", ""]
    assert table["zip"].tolist() == ["01307", "04109"]
    assert table["ratio"].dtype == "float64" and table["flag"].tolist() == [True, False] and table["none"].isna().all()
    assert table.to_csv(index=False).splitlines()[1].startswith("1e5,3301010900,01307")


def test_floats_of_another_program_become_whole_texts() -> None:
    assert as_text(pd.Series([3301010900.0, None])).tolist() == ["3301010900", ""]
    assert as_text(pd.Series([1.5, 2.0])).tolist() == ["1.5", "2.0"]


def test_labels_take_the_words_for_missing(tmp_path: Path) -> None:
    table = pd.DataFrame({"Mass": ["1", "NA", "0", "None"]})
    assert label_columns(table, ["Mass"], "t")[:, 0].tolist()[0:3:2] == [1, 0]
    with pytest.raises(ManifestError, match="holds 'perhaps'"):
        label_columns(pd.DataFrame({"Mass": ["NA", "perhaps"]}), ["Mass"], "t")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"PK\x03\x04....", "an Excel workbook.*Save it as CSV"),
        (b"\xd0\xcf\x11\xe0....", "an old Excel workbook"),
        (b"", "cannot be read as a table"),
        (b"a,b\n", "has no rows"),
        (b"a,a\n1,2\n", "has the column 'a' twice"),
        (b"a,b\n1,2,3\n", "cannot be read as a table.*Quote cells"),
        (b"a,b\n\x81\x8d,1\n", "none of UTF-8, UTF-16 and Windows-1252"),
        (b"x,b\n1,2\n", "no column 'a'; it has x, b"),
    ],
)
def test_what_is_no_table_is_named_for_what_it_is(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(raw)
    with pytest.raises(ManifestError, match=message):
        read_table(tmp_path / "t.csv", ("a",))


def test_a_cut_off_archive_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n")[:-6])
    with pytest.raises(ManifestError, match="cannot be read"):
        read_table(tmp_path / "t.csv.gz")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_names(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.txt").write_bytes('a.png\r\n\r\n"b c.png"\r\n'.encode(encoding))
    assert read_list(tmp_path / "list.txt") == ["a.png", "b c.png"]


def test_paths_of_windows(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.png").touch()
    (tmp_path / "odd\\name.png").touch()
    assert local_path(tmp_path, "x\\1.png") == str(tmp_path / "x" / "1.png")
    assert local_path(tmp_path, " x/1.png ") == str(tmp_path / "x" / "1.png")
    assert local_path(tmp_path, "odd\\name.png") == str(tmp_path / "odd\\name.png")
    assert local_path(tmp_path, "") == ""
