"""Where we differ from QEMU on purpose, each with the reason and the test that shows it. The README prints this list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Difference:
    """command: ours.  theirs, ours: what happens.  why: the reason.  test: `file::function` that holds our side."""

    command: str
    theirs: str
    ours: str
    why: str
    test: str


DIFFERENCES: Final = (
    Difference(
        "check",
        "never returns on a backing chain that runs in a circle",
        "says so, exit code 1",
        "a check must end",
        "tests/oracle/test_check.py::test_damaged_images_count_as_qemu_img_counts",
    ),
    Difference(
        "check",
        "needs the passphrase of an encrypted image",
        "needs none",
        "metadata is not encrypted",
        "tests/oracle/test_check.py::test_encryption_keys_are_kept",
    ),
    Difference(
        "check",
        "says nothing more when it cannot open an image",
        "lists what is wrong all the same, exit code 1 as QEMU's",
        "an image that does not open is the one that needs a diagnosis",
        "tests/check/test_problems.py::test_header_fields_trigger",
    ),
    Difference(
        "repair --leaks",
        "frees every leaked cluster, also the data of a lost L2 table or L1 entry, and exits 0",
        "keeps what may be guest data and says why",
        "a leak is not assumed to be waste",
        "tests/oracle/test_repair.py::test_orphaned_guest_data_is_kept_where_qemu_img_frees_it",
    ),
    Difference(
        "repair",
        "frees the LUKS header when its recorded length is too large: every key is lost",
        "takes the length from the LUKS header itself",
        "keys cannot be made again",
        "tests/oracle/test_repair.py::test_an_oversized_luks_header_length_costs_the_keys_with_qemu_img_and_not_with_us",
    ),
    Difference(
        "repair --all",
        "leaves unaligned and past-EOF entries, cannot open images with a bad L1 or snapshot table",
        "repairs them, undoably",
        "that is what the program is for",
        "tests/oracle/test_repair.py::test_the_whole_guest_disk_is_back_where_qemu_img_loses_or_refuses",
    ),
    Difference(
        "convert --snapshot, measure -l",
        "keeps the active disk's size",
        "takes the size the disk had at the snapshot",
        "the content of the snapshot is wanted, not a part of it",
        "tests/oracle/test_reading.py::test_snapshots_read_as_in_qemu_with_their_own_size",
    ),
    Difference(
        "measure",
        "needs a passphrase to measure an encrypted disk or for an encrypted image",
        "needs none",
        "nothing is read or encrypted",
        "tests/cli/test_disk_commands.py::test_measuring_a_disk_that_is_encrypted_or_will_be_needs_no_passphrase",
    ),
    Difference(
        "dd",
        "writes over its own input, whose content is lost, and exits 0",
        "refuses, whatever the name",
        "nobody means that",
        "tests/cli/test_disk_commands.py::test_dd_never_writes_over_a_file_that_it_reads",
    ),
    Difference(
        "bitmap --add",
        "7.2 exits 0 on a disk without a size, and the bitmap is lost",
        "refuses, as 10 does",
        "there is nothing to record",
        "tests/oracle/test_bitmap.py::test_a_disk_without_a_size_keeps_no_bitmap",
    ),
    Difference(
        "amend -o compat=0.10",
        "writes zeros over data that a snapshot shares, and leaves wrong COPIED flags",
        "gives such zeros clusters of their own",
        "what a snapshot holds is not to be lost",
        "tests/oracle/test_amend.py::test_zeros_over_a_snapshots_data_cost_the_snapshot_with_qemu_img_and_not_with_us",
    ),
    Difference(
        "amend -o compat=0.10",
        "drops the image's bitmaps and leaks their clusters",
        "refuses until they are removed",
        "an incremental backup would miss what they held",
        "tests/oracle/test_amend.py::test_bitmaps_are_lost_by_qemu_img_and_kept_by_us",
    ),
    Difference(
        "amend -o size=",
        "shrinks the disk without asking; when one option cannot be changed, others may be already",
        "needs --force to shrink; changes all or nothing",
        "data behind the new end is lost",
        "tests/oracle/test_amend.py::test_a_disk_shrinks_only_with_force",
    ),
    Difference(
        "bench",
        "7.2 waits for ever with -d 0, dies on a disk without a size, and times no or empty requests",
        "refuses, as 10 does",
        "a command must end",
        "tests/oracle/test_bench.py::test_what_makes_qemu_img_hang_or_die_is_refused",
    ),
    Difference(
        "rebase",
        "loses the zeros of a version 2 image that had no backing file",
        "writes them where the new backing file has data",
        "a rebase changes nothing that the guest sees",
        "tests/oracle/test_rebase.py::test_an_old_image_that_stood_alone_keeps_its_zeros_where_qemu_img_loses_them",
    ),
    Difference(
        "rebase",
        "writes zeros of the old backing file out as data",
        "makes them zero clusters",
        "nothing needs no space",
        "tests/oracle/test_rebase.py::test_zeros_are_taken_over_as_zeros_not_as_data",
    ),
    Difference(
        "rebase -u",
        "lets an image lie under itself, so that it never opens again",
        "refuses, whatever the name",
        "nobody means that",
        "tests/oracle/test_rebase.py::test_an_image_never_comes_to_lie_under_itself",
    ),
    Difference(
        "rebase -c",
        "aborts (10.0) when a cluster holds some subclusters only",
        "stores those parts uncompressed",
        "an abort is no answer",
        "tests/oracle/test_rebase.py::test_compressed_clusters_read_back",
    ),
    Difference(
        "commit",
        "writes into a base that is marked corrupt",
        "refuses",
        "the mark says that nobody shall",
        "tests/oracle/test_commit.py::test_what_qemu_img_refuses_to_write_is_refused",
    ),
    Difference(
        "convert",
        "copies an archive, a text or a shifted image as a raw disk",
        "says what the file is and refuses, unless -f raw is given; so does --salvage with any file that has no qcow2 header",
        "its bytes are not the disk that was asked for",
        "tests/cli/test_foreign.py::test_every_command_names_it_and_leaves_it",
    ),
    Difference(
        "all reading commands",
        "look for an external data file in the working directory only",
        "look beside the image next",
        "images are moved together with their data files",
        "tests/oracle/test_reading.py::test_a_data_file_beside_its_image_is_found_from_anywhere",
    ),
    Difference(
        "all reading commands",
        "open whatever protocol a backing name asks for (nbd:, json:, …)",
        "open plain local files only, through a gate the caller controls",
        "names in an image are untrusted input",
        "tests/engine/test_reading.py::test_protocol_strings_are_never_opened",
    ),
    Difference(
        "io",
        "packs compressed data into a cluster that a discard freed and a plain write took (7.2): silent corruption",
        "forgets the packing place when its cluster is freed",
        "it is a bug",
        "tests/oracle/test_io.py::test_the_script_on_which_qemu_io_itself_corrupts",
    ),
    Difference(
        "io truncate",
        "shows old data again after shrinking into a cluster and growing back",
        "reads zeros there",
        "what was cut off is gone, as with any file",
        "tests/engine/write/test_resize_create.py::test_growing_and_shrinking_keeps_what_is_left",
    ),
    Difference(
        "io flush",
        "may succeed after a flush that failed",
        "fails until the image is opened anew",
        "the kernel has dropped the data; saying otherwise would be a lie",
        "tests/engine/write/test_crashes.py::test_after_a_failed_flush_no_later_one_succeeds",
    ),
)
