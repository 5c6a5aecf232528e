"""`qwb info` on samples: text, JSON, damage."""

from __future__ import annotations

import json

import pytest

from sample_images import load_manifest, sample_path


@pytest.mark.parametrize("name", [each.name for each in load_manifest()])
def test_every_sample_is_shown_and_unchanged(name: str, qwb, sample) -> None:  # type: ignore[no-untyped-def]
    path = sample(name)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    for arguments in (("info",), ("info", "--json"), ("dump", "--json"), ("map",), ("map", "--json")):
        command, *flags = arguments
        result = qwb(command, path, *flags)
        assert result.exit_code in (0, 1)
        if "--json" in flags and command != "map":
            json.loads(result.stdout)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_sections_say_what_there_is(qwb) -> None:  # type: ignore[no-untyped-def]
    text = qwb("info", sample_path("snapshots")).stdout
    assert "Snapshots" in text and "five mebibytes" in text and "Bitmaps" not in text
    assert "key slots  1 of 8 in use: 0" in qwb("info", sample_path("luks")).stdout
    assert "dirty           yes" in qwb("info", sample_path("dirty")).stdout


def test_a_damaged_header_is_shown_with_its_faults(qwb, sample) -> None:  # type: ignore[no-untyped-def]
    path = sample("plain")
    data = bytearray(path.read_bytes())
    data[4:8] = (77).to_bytes(4, "big")
    path.write_bytes(data)
    result = qwb("info", path)
    assert result.exit_code == 0
    assert "DAMAGED" in result.stdout and "HEADER-VERSION" in result.stdout and "version 77" in result.stdout
    info = json.loads(qwb("info", "--json", path).stdout)
    assert info["opens"] is False and info["faults"][0]["code"] == "HEADER-VERSION"


def test_only_the_magic_makes_an_image(qwb, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "cut"
    path.write_bytes(b"QFI\xfb\0\0\0\3")
    assert qwb("info", path).exit_code == 0
    path.write_bytes(b"QFI")
    assert qwb("info", path).exit_code == 1


def test_a_broken_chain_is_shown_as_far_as_it_goes(qwb, sample) -> None:  # type: ignore[no-untyped-def]
    result = qwb("info", "--backing-chain", "--json", sample("backing-missing"))
    assert result.exit_code == 1
    chain = json.loads(result.stdout)
    assert len(chain) == 1 and "nowhere.raw is missing" in chain[0]["backing-error"]
    assert result.stderr.count("\n") == 1


def test_a_chain_that_bites_its_tail_ends(qwb, sample, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = sample("backing-missing")
    info = json.loads(qwb("info", "--json", path).stdout)
    (tmp_path / info["backing-filename"]).symlink_to(path)
    chain = json.loads(qwb("info", "--backing-chain", "--json", path).stdout)
    assert "comes back" in chain[-1]["backing-error"]


def test_an_image_in_use_needs_U(qwb, sample) -> None:  # type: ignore[no-untyped-def]
    from workbench.storage.file import FileStorage
    from workbench.storage.locks import LockMode, acquire

    path = sample("plain")
    with FileStorage.open(path, writable=True) as held, acquire(held, LockMode.WRITE):
        refused = qwb("info", path)
        assert refused.exit_code == 1 and "-U" in refused.stderr
        allowed = qwb("info", "-U", path)
        assert allowed.exit_code == 0 and "in motion" in allowed.stderr
