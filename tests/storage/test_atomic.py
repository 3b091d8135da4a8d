"""Atomic writes: readers see the old content or the new one; nothing else is left."""

import json
from pathlib import Path

import pytest

from imaml.core.errors import DataError
from imaml.storage.atomic import disk_errors, is_leftover, replacing, write_json, write_whole


@pytest.mark.parametrize("durable", [False, True])
def test_content_is_replaced_as_a_whole(tmp_path, durable):
    path = tmp_path / "a.txt"
    write_whole(path, "Größe", durable=durable)
    write_whole(path, b"more", durable=durable)
    assert path.read_bytes() == b"more"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_content(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "old")

    def fail():
        with replacing(path) as writing:
            writing.write_text("half")
            assert is_leftover(writing.name)
            assert not is_leftover(path.name)
            assert path.read_text() == "old"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None]}


def test_errors_of_the_disk_name_the_reason(tmp_path):
    def fail():
        with disk_errors("page.html", DataError):
            write_whole(Path(tmp_path, "none", "a.txt"), "")

    with pytest.raises(
        DataError,
        match=r"^page\.html: expected a place that can be written, got an error \(No such file or "
        r"directory\)\. Hint: free space there, or choose another folder\.$",
    ):
        fail()
