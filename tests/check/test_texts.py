"""What a check says in words: the right cause, the right file, nothing that is not known."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.check.images import COPIED, Tiny, load
from workbench.check import check
from workbench.check.companions import check_file
from workbench.check.result import CheckResult
from workbench.cli.main import cli
from workbench.engine.image import Image
from workbench.engine.info import image_info
from workbench.engine.metadata import load_metadata
from workbench.errors import QwbError
from workbench.render.check_report import report
from workbench.render.findings import verdict_words
from workbench.render.info import info_lines
from workbench.render.plan import verdict_text
from workbench.render.text import printable
from workbench.repair.edits import plan_lines
from workbench.repair.plan import make_plan
from workbench.storage.file import FileStorage


def overlay(folder: Path, backing: str = "base.qcow2", tiny: Tiny | None = None) -> Path:
    """An image in `folder` that names a backing file of format qcow2."""
    tiny = tiny or Tiny()
    name = backing.encode()
    form = struct.pack(">II", 0xE2792ACA, 5) + b"qcow2\0\0\0" + bytes(8)
    tiny.extensions = form
    tiny.header |= {8: (600).to_bytes(8, "big"), 16: len(name).to_bytes(4, "big"), 600: name}
    path = folder / "img.qcow2"
    path.write_bytes(tiny.build())
    return path


def checked(path: Path) -> CheckResult:
    with FileStorage.open(path) as storage:
        return check_file(storage)


def text_of(result: CheckResult) -> str:
    return "\n".join(report(result))


class TestAMissingBackingFile:
    def test_is_the_cause_and_not_the_header(self, tmp_path: Path) -> None:
        result = checked(overlay(tmp_path))
        assert result.exit_code == 1 and not result.corruptions
        assert [each.title for each in result.causes] == ["The backing file base.qcow2 is missing"]
        assert "header is damaged" not in text_of(result)

    def test_deeper_in_the_chain_is_named_with_the_file_that_names_it(self, tmp_path: Path) -> None:
        overlay(tmp_path, "lost.qcow2").rename(tmp_path / "middle.qcow2")
        result = checked(overlay(tmp_path, "middle.qcow2"))
        assert result.aborted is not None and "lost.qcow2" in result.aborted and "middle.qcow2" in result.aborted

    def test_beside_real_damage_both_are_told(self, tmp_path: Path) -> None:
        path = overlay(tmp_path)
        with path.open("r+b") as file:
            file.seek(Tiny().entry(0))
            file.write((0x50000 | COPIED | 1 << 58).to_bytes(8, "big"))
        titles = [each.title for each in checked(path).causes]
        assert titles[0].startswith("The backing file") and len(titles) == 2

    def test_is_what_opening_says_with_a_way_out(self, tmp_path: Path) -> None:
        path = overlay(tmp_path)
        with pytest.raises(QwbError, match=r"img.qcow2: the backing file 'base.qcow2' is missing.*--no-backing"):
            Image.open(path)
        with Image.open(path, tolerant=True) as image:
            assert "base.qcow2' is missing" in image.problems[0].what

    def test_is_told_by_info(self, tmp_path: Path) -> None:
        path = overlay(tmp_path)
        with FileStorage.open(path) as storage:
            meta = load_metadata(storage)
            lost = "\n".join(info_lines(image_info(meta, str(path))))
            (tmp_path / "base.qcow2").write_bytes(Tiny().build())
            there = "\n".join(info_lines(image_info(meta, str(path))))
        assert "looked for at" in lost and "the file is missing" in lost
        assert "found at" in there and "missing" not in there

    @pytest.mark.parametrize("hurt", [False, True], ids=["sound", "hurt"])
    def test_is_in_the_verdicts_of_a_repair(self, hurt: bool, tmp_path: Path) -> None:
        tiny = Tiny()
        path = overlay(tmp_path, tiny=tiny)
        if hurt:
            with path.open("r+b") as file:
                file.seek(tiny.entry(0))
                file.write((5 * tiny.size).to_bytes(8, "big"))  # COPIED is missing
        with FileStorage.open(path) as storage:
            plan = make_plan(storage)
            now, after, *_ = plan_lines(plan)
        missing = "the backing file base.qcow2 is missing"
        assert now == f"now:   {f'1 corruptions; {missing}' if hurt else f'clean in itself, but {missing}'}"
        assert after == f"after: clean in itself, but {missing}"
        assert plan.after.clean and plan.after.openable, "the image itself is"
        told = plan.after.as_json()
        assert told["exit-code"] == 1 and not told["openable"] and told["companion"] == missing
        assert verdict_text(told) == f"clean in itself, but {missing}"
        assert verdict_words(plan.result_after) == ("backing file missing", "bad")

    def test_does_not_keep_a_repair_from_ending_its_marks(self, tmp_path: Path) -> None:
        """The dirty bit goes when the refcounts are right, whatever else the image needs."""
        path = overlay(tmp_path, tiny=Tiny(incompatible=1))
        found = checked(path)
        with FileStorage.open(path) as storage:
            for before in (None, found):
                assert load_metadata(make_plan(storage, before=before).overlay).header.incompatible_features == 0

    def test_does_not_hide_what_is_wrong_with_the_keys(self, tmp_path: Path) -> None:
        path = overlay(tmp_path, tiny=Tiny(crypt_method=2))
        result = checked(path)
        assert "ENCRYPTION-MISSING" in result.findings.by_code
        assert result.refused is not None and result.companion is not None

    def test_whose_name_would_steer_a_terminal_is_shown_in_escapes(self, tmp_path: Path) -> None:
        path = overlay(tmp_path, "b\x1b]0;owned\x07\x1b[2J\u202e.qcow2")
        result = checked(path)
        with FileStorage.open(path) as storage:
            shown = verdict_text(make_plan(storage).after)
        for line in (*report(result), shown):
            assert line == printable(line)
        assert "\\x1b]0;owned" in shown

    def test_one_that_is_something_else_is_named(self, tmp_path: Path) -> None:
        path = overlay(tmp_path)
        (tmp_path / "base.qcow2").write_bytes(b"<html></html>")
        result = checked(path)
        assert result.exit_code == 1 and "HTML" in text_of(result)
        assert result.causes[0].title == "The backing file cannot be used"


class TestABackingFileThatWasReplaced:
    @pytest.mark.parametrize(
        ("later", "said"), [(3 * 86400, "3 days"), (7300, "2 hours"), (61, "1 minute"), (60, ""), (-86400, "")]
    )
    def test_is_younger_than_the_image_on_it(self, later: int, said: str, tmp_path: Path) -> None:
        path, base = overlay(tmp_path), tmp_path / "base.qcow2"
        base.write_bytes(Tiny().build())
        os.utime(path, (1_700_000_000, 1_700_000_000))
        os.utime(base, (1_700_000_000 + later, 1_700_000_000 + later))
        result = checked(path)
        assert result.exit_code == 0, "a time stamp is no damage"
        messages = [each.message for each in result.findings.of("BACKING-YOUNGER")]
        assert messages == (
            [f"the backing file 'base.qcow2' was written {said} after this image last was"] if said else []
        )
        with FileStorage.open(path) as storage:
            lines = "\n".join(info_lines(image_info(load_metadata(storage), str(path))))
            assert make_plan(storage).empty
        assert ("after this image last was" in lines) == bool(said)

    def test_is_named_with_the_image_that_is_older(self, tmp_path: Path) -> None:
        overlay(tmp_path).rename(tmp_path / "middle.qcow2")
        path = overlay(tmp_path, "middle.qcow2")
        (tmp_path / "base.qcow2").write_bytes(Tiny().build())
        for number, each in enumerate((tmp_path / "middle.qcow2", path, tmp_path / "base.qcow2")):
            os.utime(each, (1_700_000_000 + number * 1000, 1_700_000_000 + number * 1000))
        (message,) = [each.message for each in checked(path).findings.of("BACKING-YOUNGER")]
        assert f"after {tmp_path / 'middle.qcow2'} last was" in message


class TestTablesPastTheEnd:
    @pytest.mark.parametrize(("field", "word"), [(40, "L1 table"), (48, "refcount table")])
    def test_are_the_cause_in_check_and_in_info(self, field: int, word: str) -> None:
        meta = load(Tiny(header={field: (0x700000).to_bytes(8, "big")}).build())
        result = check(meta)
        assert f"The {word} lies past the end of the file" in [each.title for each in result.causes]
        faults = image_info(meta, "img.qcow2")["faults"]
        assert any(word in each["what"] and "past the end of the file" in each["what"] for each in faults)
        assert result.findings.by_code["REGION-BEYOND-EOF"] == (1, 1), "one fault, one row"

    @pytest.mark.parametrize("offset", [0x7FFFFFFFFFFF0000, 0x7FFFFFFFC0000000, 0xFFFFFFFFFFFF0000])
    @pytest.mark.parametrize("field", [40, 48])
    def test_that_no_driver_can_read_are_refused(self, field: int, offset: int, tmp_path: Path) -> None:
        path = tmp_path / "img.qcow2"
        path.write_bytes(Tiny(header={field: offset.to_bytes(8, "big")}).build())
        with pytest.raises(QwbError, match="cannot be read"):
            Image.open(path)
        assert checked(path).exit_code == 1

    @pytest.mark.parametrize(
        "words",
        ["convert IMAGE OUT", "convert -O qcow2 IMAGE OUT", "map IMAGE", "map --json IMAGE", "io -r -c length IMAGE"],
    )
    def test_that_no_driver_can_read_end_every_command_that_reads_the_disk(self, words: str, tmp_path: Path) -> None:
        path, out = tmp_path / "img.qcow2", tmp_path / "out"
        path.write_bytes(Tiny(header={40: 0x7FFFFFFFFFFF0000.to_bytes(8, "big")}).build())
        names = {"IMAGE": str(path), "OUT": str(out)}
        done = CliRunner().invoke(cli, [names.get(word, word) for word in words.split()])
        assert done.exit_code == 1 and "the active L1 table cannot be read" in done.stderr
        assert not out.exists()

    def test_a_snapshot_table_that_cannot_be_read_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "img.qcow2"
        header = {60: (1).to_bytes(4, "big"), 64: 0x7FFFFFFFFFFF0000.to_bytes(8, "big")}
        path.write_bytes(Tiny(header=header).build())
        assert checked(path).exit_code == 1
        path.write_bytes(Tiny(header={64: 0x7FFFFFFFFFFF0000.to_bytes(8, "big")}).build())
        assert checked(path).exit_code == 0, "without snapshots nobody reads it"


class TestCauses:
    def titles(self, image: bytes | bytearray) -> list[str]:
        return [each.title for each in check(load(image)).causes]

    def test_of_lost_refcounts_promise_the_mapping_only_where_it_is_whole(self) -> None:
        tiny = Tiny()
        image = tiny.build()
        tiny.put(image, tiny.size, 2 * tiny.size + 512)  # the refcount block's entry is unaligned
        assert "The mapping is not affected" in text_of(check(load(image)))
        tiny.put(image, tiny.entry(3), 1 << 40 | COPIED)
        text = text_of(check(load(image)))
        assert "Refcounts were lost" in text and "The mapping has faults of its own" in text
        assert "all data can be read" not in text
        assert "no refcount that can be read says that it is in use" in " ".join(text.split())

    def test_of_an_l1_table_that_is_something_else_say_so_in_one_cause(self) -> None:
        tiny = Tiny(header={24: (128 << 30).to_bytes(8, "big"), 36: (256).to_bytes(4, "big")})
        image = tiny.build()
        image[3 * tiny.size : 3 * tiny.size + 2048] = b"\x60" * 2048
        result = check(load(image))
        assert result.causes[0].title == "The L1 table was overwritten"
        assert "256 of its 256 entries in use" in result.causes[0].text
        assert "L2-TABLE-SHARED" not in result.findings.by_code, "there is no table to share"
        for code in ("L1-ENTRY-RESERVED", "L1-ENTRY-UNALIGNED", "L1-ENTRY-BEYOND-EOF"):
            assert result.findings.by_code[code] == (256, 256) and result.findings.rows(code).size == 1

    def test_of_a_single_wrong_l1_entry_stay_as_they_were(self) -> None:
        tiny = Tiny(header={36: (2).to_bytes(4, "big")})
        image = tiny.build()
        tiny.put(image, 3 * tiny.size + 8, 1 << 40)
        assert self.titles(image)[0] == "Single entries were damaged"

    def test_of_a_header_that_says_nothing_lead_to_what_looks_behind_it(self) -> None:
        image = Tiny(header={0: bytes(4)}).build()
        cause, *_ = check(load(image)).causes
        assert cause.code == "HEADER-DAMAGED" and "`qwb repair --dry-run`" in cause.text


class TestRoomInside:
    def test_is_told_where_a_copy_would_be_much_shorter(self) -> None:
        tiny = Tiny(data_clusters=100)
        image = tiny.build()
        for index in range(60):
            tiny.put(image, tiny.entry(index), 0)
            image[2 * tiny.size + 2 * (5 + index) : 2 * tiny.size + 2 * (5 + index) + 2] = bytes(2)
            image[(5 + index) * tiny.size : (6 + index) * tiny.size] = bytes(tiny.size)
        result = check(load(image))
        assert result.exit_code == 0
        said = f"Free inside: 3.75 MiB; with its clusters side by side the image would end at {45 * tiny.size} "
        assert said in text_of(result)

    def test_is_not_told_of_a_few_clusters_of_leaks_or_of_what_may_be_data(self) -> None:
        for free in (0, 2):
            tiny = Tiny(data_clusters=100)
            image = tiny.build()
            for index in range(60):
                tiny.put(image, tiny.entry(index), 0)
                if index < free:
                    image[2 * tiny.size + 2 * (5 + index) : 2 * tiny.size + 2 * (5 + index) + 2] = bytes(2)
            assert "Free inside" not in text_of(check(load(image)))


@pytest.mark.parametrize("name_at", [0x74, 0x78, 600])
def test_an_extension_that_reaches_over_the_backing_name_is_too_large(name_at: int, tmp_path: Path) -> None:
    name = {8: name_at.to_bytes(8, "big"), 16: (4).to_bytes(4, "big"), name_at: b"base"}
    tiny = Tiny(header=name | {100: (112).to_bytes(4, "big"), 104: bytes(8), 112: bytes.fromhex("123456787fffffff")})
    path = tmp_path / "img.qcow2"
    path.write_bytes(tiny.build())
    result = checked(path)
    assert result.exit_code == 1
    assert result.refused is not None and "header extension too large" in result.refused
    with pytest.raises(QwbError, match="header extension too large"):
        Image.open(path)


class TestTheUnusedTail:
    def test_is_not_called_unused_where_a_lost_table_lies_in_it(self) -> None:
        tiny = Tiny(data_clusters=8)
        image = tiny.build()
        image[2 * tiny.size + 8 : 3 * tiny.size] = bytes(tiny.size - 8)  # counted: header to L1 table
        tiny.put(image, 3 * tiny.size, 0)
        result = check(load(image))
        assert result.exit_code == 0 and [each.offset for each in result.lost_tables] == [4 * tiny.size]
        assert "FILE-TAIL-UNUSED" not in result.findings.by_code
        assert "leaked" not in text_of(result).replace("qemu-img check -r leaks", "")

    def test_is_said_when_refcounts_are_known(self) -> None:
        image = Tiny().build() + bytes(4 << 16)
        assert "FILE-TAIL-UNUSED" in check(load(image)).findings.by_code

    @pytest.mark.parametrize("value", [0x20200, 0x20000 | 1, 0x7000000])
    def test_is_not_said_when_they_cannot_be_read(self, value: int) -> None:
        image = Tiny().build() + bytes(4 << 16)
        Tiny.put(image, 1 << 16, value)
        assert "FILE-TAIL-UNUSED" not in check(load(image)).findings.by_code

    def test_is_not_said_without_a_refcount_table_or_an_l1_table(self) -> None:
        for field in (40, 48):
            image = Tiny(header={field: (0x700000).to_bytes(8, "big")}).build() + bytes(4 << 16)
            assert "FILE-TAIL-UNUSED" not in check(load(image)).findings.by_code


def test_messages_of_limits_name_them() -> None:
    header = {16: (1024).to_bytes(4, "big"), 8: (512).to_bytes(8, "big"), 60: (65537).to_bytes(4, "big")}
    result = check(load(Tiny(header=header).build()))
    said = " ".join(found.message for found in result.findings)
    assert "the limit of 1023" in said and "the limit of 65536" in said
    for record, limit in (((65536, 0, 100, 0x10000), "65535"), ((1, 0, 1 << 40, 0x10000), "67107840")):
        data = struct.pack(">IIII", 0x23852875, 24, *record[:2]) + struct.pack(">QQ", *record[2:]) + bytes(8)
        found = check(load(Tiny(autoclear=1, extensions=data).build())).findings
        assert any(limit in each.message for each in found), [each.message for each in found]


class TestOwners:
    """Whoever shares a cluster is named with its guest offset."""

    def message(self, image: bytearray, code: str) -> str:
        return next(check(load(image)).findings.of(code)).message

    def test_of_cross_linked_clusters(self) -> None:
        tiny = Tiny()
        image = tiny.build()
        tiny.put(image, tiny.entry(3), 5 * tiny.size | COPIED)
        said = self.message(image, "DATA-CROSS-LINKED")
        assert "guest 0x0 (L2 table 0x40000, entry 0) and guest 0x30000 (L2 table 0x40000, entry 3)" in said

    def test_of_many_the_first_ones(self) -> None:
        tiny = Tiny(data_clusters=40)
        image = tiny.build()
        for index in range(1, 40):
            tiny.put(image, tiny.entry(index), 5 * tiny.size | COPIED)
        assert "and 36 more" in self.message(image, "DATA-CROSS-LINKED")

    @pytest.mark.parametrize(
        ("cluster", "owner"), [(0, "header"), (1, "refcount table"), (2, "refcount block"), (3, "L1 table")]
    )
    def test_of_data_on_metadata(self, cluster: int, owner: str) -> None:
        tiny = Tiny()
        image = tiny.build()
        tiny.put(image, tiny.entry(2), cluster * tiny.size | COPIED)
        if cluster:
            said = self.message(image, "DATA-OVERLAPS-METADATA")
            assert owner in said and "guest 0x20000 (L2 table 0x40000, entry 2)" in said

    def test_of_compressed_on_plain_data(self) -> None:
        tiny = Tiny()
        image = tiny.build()
        tiny.put(image, tiny.entry(3), 1 << 62 | 5 * tiny.size)
        said = self.message(image, "DATA-OVERLAPS-COMPRESSED")
        assert "guest 0x0 (L2 table" in said and "guest 0x30000 (compressed, L2 table" in said

    def test_of_an_l2_table_with_two_l1_entries(self) -> None:
        tiny = Tiny(header={36: (2).to_bytes(4, "big")})
        image = tiny.build()
        tiny.put(image, 3 * tiny.size + 8, 4 * tiny.size | COPIED)
        said = self.message(image, "L2-TABLE-SHARED")
        assert "L1 entry 0 (guest 0x0) and L1 entry 1 (guest 0x20000000)" in said

    def test_of_two_structures(self) -> None:
        tiny = Tiny()
        image = tiny.build()
        tiny.put(image, 3 * tiny.size, tiny.size | COPIED)
        assert "(L1 entry 0, guest 0x0)" in self.message(image, "METADATA-OVERLAP")


class TestOneFaultOneRow:
    def test_beyond_the_refcounts(self) -> None:
        """Many tables whose clusters have no refcounts at all."""
        size, tables = 512, 40
        image = bytearray(Tiny(cluster_bits=9, data_clusters=0).build())
        entries = size // 8
        image[24:32] = (tables * entries * size).to_bytes(8, "big")
        image[36:40], image[40:48] = tables.to_bytes(4, "big"), (5 * size).to_bytes(8, "big")
        image += bytes(size)
        image[2 * size + 10 : 2 * size + 12] = b"\0\1"
        for table in range(tables):
            start = len(image)
            Tiny.put(image, 5 * size + 8 * table, start | COPIED)
            image += b"".join((start + (n + 1) * size | COPIED).to_bytes(8, "big") for n in range(entries)) + bytes(
                size * entries
            )
        result = check(load(image))
        assert result.corruptions > 2 * tables * entries
        for code in ("L2-COPIED-WRONG", "REFCOUNT-ZERO"):
            assert result.findings.rows(code).size <= 2, code
        row = max(result.findings.of("L2-COPIED-WRONG"), key=lambda each: each.count)
        assert row.guest_length == row.count * size, "its guest range is exact"

    def test_is_one_line_for_each_code_in_the_report(self) -> None:
        """Refcount blocks lost, unaligned here and there, whose clusters lie in many pieces of the file."""
        tiny = Tiny(cluster_bits=9, data_clusters=0)
        size = tiny.size
        image = bytearray(tiny.build())
        entries = size // 8
        image[24:32] = (40 * entries * size).to_bytes(8, "big")
        image[36:40], image[40:48] = (40).to_bytes(4, "big"), (5 * size).to_bytes(8, "big")
        image += bytes(size)
        image[2 * size + 10 : 2 * size + 12] = b"\0\1"
        for table in range(40):
            image += bytes(size)  # a gap: no run of clusters goes on over it
            start = len(image)
            Tiny.put(image, 5 * size + 8 * table, start | COPIED)
            image += b"".join((start + (n + 1) * size | COPIED).to_bytes(8, "big") for n in range(entries))
            image += b"\1" * (size * entries)
        result = check(load(image))
        rows = result.findings.rows("REFCOUNT-ZERO")
        assert rows.size == 40 and result.findings.rows("REFBLOCK-MISSING").size > 8
        lines = list(report(result))
        for code in ("REFCOUNT-ZERO", "REFBLOCK-MISSING"):
            found = [line for line in lines if f" {code}: " in line]
            assert len(found) == 1, code
            items, _ = result.findings.by_code[code]
            assert f"{result.findings.rows(code).size} ranges, {items:,} in all" in found[0]
        every = [line for line in report(result, limit=None) if " REFCOUNT-ZERO: " in line]
        assert len(every) == 40

    def test_faults_of_their_own_stay_lines_of_their_own(self) -> None:
        tiny = Tiny(data_clusters=40)
        image = tiny.build()
        for index in (0, 7, 14, 21, 28, 35):
            tiny.put(image, tiny.entry(index), (5 + index) * tiny.size)
        lines = [line for line in report(check(load(image))) if "L2-COPIED-WRONG: " in line]
        assert len(lines) == 6

    def test_rows_that_do_not_go_on_stay_apart(self) -> None:
        tiny = Tiny()
        image = tiny.build()
        for index in (0, 2):
            tiny.put(image, tiny.entry(index), (5 + index) * tiny.size)
        assert [found.count for found in check(load(image)).findings.of("L2-COPIED-WRONG")] == [1, 1]
