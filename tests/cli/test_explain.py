"""`qwb explain`, `qwb map` and `qwb samples`."""

from __future__ import annotations

import json

from sample_images import load_manifest, sample_path


def test_guest_offset_is_translated_with_the_numbers(qwb) -> None:  # type: ignore[no-untyped-def]
    text = qwb("explain", sample_path("plain"), "g:0x3010").stdout
    for piece in ("L1 index = 0x3010 ÷ 0x200000 = 0", "L2 index = 0x3010 ÷ 0x1000 = 3, remainder 0x10", "+ 0x10 = "):
        assert piece in text
    found = json.loads(qwb("explain", "--json", sample_path("plain"), "g:0x3010").stdout)
    assert found["outcome"] == "data"
    back = json.loads(qwb("explain", "--json", sample_path("plain"), hex(found["host"])).stdout)
    assert [owner["guest-byte"] for owner in back["owners"]] == [0x3010] and back["refcount"] == 1


def test_table_entries_stand_for_what_they_describe(qwb) -> None:  # type: ignore[no-untyped-def]
    assert json.loads(qwb("explain", "--json", sample_path("plain"), "l2:0.3").stdout)["guest"] == 0x3000
    assert json.loads(qwb("explain", "--json", sample_path("plain"), "rb:0.2").stdout)["cluster"] == 2
    assert json.loads(qwb("explain", "--json", sample_path("plain"), "header").stdout)["cluster"] == 0


def test_snapshot_has_its_own_way(qwb) -> None:  # type: ignore[no-untyped-def]
    found = json.loads(qwb("explain", "--json", "--snapshot", "five mebibytes", sample_path("snapshots"), "g:0").stdout)
    assert found["snapshot"] == 1
    assert qwb("explain", "--snapshot", "nobody", sample_path("snapshots"), "g:0").exit_code == 1


def test_leak_is_called_a_leak(qwb) -> None:  # type: ignore[no-untyped-def]
    path = sample_path("leaked")
    last = path.stat().st_size - 1
    assert "leak" in qwb("explain", path, hex(last)).stdout


def test_backing_file_is_named(qwb) -> None:  # type: ignore[no-untyped-def]
    path = sample_path("backing-missing")
    for at in range(0, 1 << 20, 4096):
        found = json.loads(qwb("explain", "--json", path, f"g:{at}").stdout)
        if found["outcome"] == "unallocated":
            assert found["backing"]
            return
    raise AssertionError("nothing is unallocated")


def test_map_table_and_options(qwb) -> None:  # type: ignore[no-untyped-def]
    text = qwb("map", sample_path("plain")).stdout
    assert "compressed" in text and "unallocated" in text and text.splitlines()[-1].startswith("Total: ")
    part = json.loads(qwb("map", "--json", sample_path("plain"), "-s", "4k", "-l", "0x800").stdout)
    assert [(each["start"], each["length"]) for each in part] == [(4096, 2048)]


def test_map_of_a_damaged_image_says_so(qwb) -> None:  # type: ignore[no-untyped-def]
    result = qwb("map", "--json", sample_path("unaligned-entry"))
    assert result.exit_code == 1 and "damaged" in result.stderr
    assert any(each["type"] == "invalid" for each in json.loads(result.stdout))


def test_samples_are_listed_described_and_copied(qwb, tmp_path) -> None:  # type: ignore[no-untyped-def]
    names = [each["name"] for each in json.loads(qwb("samples", "--json").stdout)]
    assert names == [each.name for each in load_manifest()]
    assert "look at" in qwb("samples", "leaked").stdout
    assert qwb("samples", "plain", tmp_path).exit_code == 0
    assert (tmp_path / "plain.qcow2").read_bytes() == sample_path("plain").read_bytes()
    assert qwb("samples", "plain", tmp_path).exit_code == 1
    assert qwb("samples", "nothing").exit_code == 1
