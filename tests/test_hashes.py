"""A file that changed is never taken for one that did not; one that did not is read in full once."""

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from xtrrep.artifacts import hashes
from xtrrep.artifacts.hashes import hash_file, hash_files, hash_outside


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large begins at 1,000 bytes here, and a file settles at once."""
    monkeypatch.setattr(hashes, "ALWAYS", 1000)
    monkeypatch.setattr(hashes, "END", 100)
    monkeypatch.setattr(hashes, "SETTLED", -1.0)
    monkeypatch.setattr(hashes, "_kept", {})


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read in full, in order."""
    names: list[str] = []

    def counting(path: Path, tick: Callable[[int], object] | None = None, algorithm: str = "sha256") -> str:
        names.append(path.name)
        return hash_file(path, tick)

    monkeypatch.setattr(hashes, "hash_file", counting)
    return names


def fill(folder: Path) -> list[str]:
    folder.mkdir()
    rng = random.Random(0)
    (folder / "large").write_bytes(rng.randbytes(5000))
    (folder / "small").write_bytes(rng.randbytes(1000))
    return ["large", "small"]


def test_a_large_file_is_read_once_and_a_small_one_always(tmp_path: Path, read: list[str]) -> None:
    names, record = fill(tmp_path / "a"), tmp_path / "records" / "a.json"
    expected = {name: hash_file(tmp_path / "a" / name) for name in names}
    for _ in range(3):
        assert hash_files(tmp_path / "a", names, record) == expected
    assert sorted(read) == ["large", "small", "small", "small"]
    hashes._kept.clear()  # another process
    assert hash_files(tmp_path / "a", names, record) == expected
    assert read.count("large") == 1
    assert hash_files(tmp_path / "a", names, record, afresh=True) == expected
    assert read.count("large") == 2
    assert [path.name for path in record.parent.iterdir()] == ["a.json"]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    with path.open("r+b") as file:
        file.write(data)


@pytest.mark.parametrize("at", [0, 2500, 4999])
def test_a_flipped_bit_is_seen_though_size_and_time_are_set_back(tmp_path: Path, at: int) -> None:
    names, record = fill(tmp_path / "a"), tmp_path / "a.json"
    path = tmp_path / "a" / "large"
    before = hash_files(tmp_path / "a", names, record)
    stat = path.stat()
    time.sleep(0.02)  # a step of the kernel's clock: what comes sooner, SETTLED keeps out of the record
    flip(path, at)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    found = hash_files(tmp_path / "a", names, record)
    assert found["large"] == hash_file(path) != before["large"]


def test_both_ends_are_read_even_where_no_time_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that decays: the bytes are others and the file's times are not. What lies between shows only when
    everything is read."""
    names, record = fill(tmp_path / "a"), tmp_path / "a.json"
    path = tmp_path / "a" / "large"
    before = hash_files(tmp_path / "a", names, record)["large"]
    for at, seen in ((50, True), (4950, True), (2500, False)):
        flip(path, at)
        entries = json.loads(record.read_text())
        entries["large"][1:3] = [path.stat().st_mtime_ns, path.stat().st_ctime_ns]
        record.write_text(json.dumps(entries))
        hashes._kept.clear()
        assert (hash_files(tmp_path / "a", names, record)["large"] != before) is seen
        assert hash_files(tmp_path / "a", names, record, afresh=True)["large"] != before
        flip(path, at)
        hash_files(tmp_path / "a", names, record, afresh=True)


def test_another_file_in_its_place_is_seen(tmp_path: Path) -> None:
    names, record = fill(tmp_path / "a"), tmp_path / "a.json"
    path = tmp_path / "a" / "large"
    hash_files(tmp_path / "a", names, record)
    stat = path.stat()
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes()[:2500] + bytes(1) + path.read_bytes()[2501:])
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, path)
    assert hash_files(tmp_path / "a", names, record)["large"] == hash_file(path)


def test_what_a_killed_process_left_of_a_record_goes(tmp_path: Path) -> None:
    names, record = fill(tmp_path / "a"), tmp_path / "below" / "b" / "[a].json"
    for left in (".[a].json.1", ".a.json.2"):
        (tmp_path / "below" / "b").mkdir(parents=True, exist_ok=True)
        (tmp_path / "below" / "b" / left).write_text("{")
    hash_files(tmp_path / "a", names, record)
    assert sorted(path.name for path in record.parent.iterdir()) == [".a.json.2", "[a].json"]  # its own alone


def test_what_was_just_written_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second write within the clock's step would leave the times as they are."""
    monkeypatch.setattr(hashes, "SETTLED", 2.0)
    names, record = fill(tmp_path / "a"), tmp_path / "a.json"
    hash_files(tmp_path / "a", names, record)
    assert not record.exists()
    assert not hashes._kept[record]


def test_a_file_written_to_while_it_is_read_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, record = fill(tmp_path / "a"), tmp_path / "a.json"

    def slow(path: Path, tick: Callable[[int], object] | None = None, algorithm: str = "sha256") -> str:
        found = hash_file(path, tick)
        if path.name == "large":
            flip(path, 2500)
        os.utime(path, ns=(0, 0))
        return found

    monkeypatch.setattr(hashes, "hash_file", slow)
    hash_files(tmp_path / "a", names, record)
    assert not record.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"large": 3}', '{"large": []}', '{"large": ["x"]}', "null"])
def test_a_broken_record_only_costs_reading(tmp_path: Path, text: str) -> None:
    names, record = fill(tmp_path / "a"), tmp_path / "a.json"
    record.write_text(text)
    assert hash_files(tmp_path / "a", names, record)["large"] == hash_file(tmp_path / "a" / "large")
    assert json.loads(record.read_text())["large"][-1] == hash_file(tmp_path / "a" / "large")


def test_where_nothing_can_be_recorded_a_process_still_reads_once(tmp_path: Path, read: list[str]) -> None:
    names = fill(tmp_path / "a")
    (tmp_path / "blocked").write_text("a file where the records' folder should be")
    record = tmp_path / "blocked" / "a.json"
    for _ in range(2):
        assert hash_files(tmp_path / "a", names, record)["large"] == hash_file(tmp_path / "a" / "large")
    assert read.count("large") == 1


def test_files_outside_the_artifacts_have_a_record_each_folder(tmp_path: Path, read: list[str]) -> None:
    for name in ("a", "b"):
        fill(tmp_path / name)
    (tmp_path / "root").mkdir()
    for _ in range(2):
        for path in (tmp_path / "a" / "large", tmp_path / "b" / "large", tmp_path / "a" / "small"):
            assert hash_outside(path, tmp_path / "root") == hash_file(path)
    assert read.count("large") == 2
    assert len(list((tmp_path / "root").rglob("*.json"))) == 2
    assert hash_outside(tmp_path / "a" / "large", tmp_path / "not yet") == hash_file(tmp_path / "a" / "large")
    assert not (tmp_path / "not yet").exists()
