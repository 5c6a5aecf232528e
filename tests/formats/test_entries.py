"""One reading: what entries of every table say, alone and as columns, by the specification's own words."""

import random
from itertools import product

import numpy as np
import pytest

from formats.qcow2.entries import (
    ALL_ALLOCATED,
    BLOCKING,
    NO_HOST,
    SUBCLUSTERS,
    ClusterType,
    Fault,
    L2Entries,
    Pointer,
    PointerKind,
    Pointers,
    PointerTable,
    Shape,
    as_plain,
    driver_kind,
    first_blocking,
    impossible_bits,
    interleaved,
    l2_faults,
    moved_to,
    one_run_tables,
    packed_range,
    past_end,
    plain_run,
    pointing_to,
    read_l2,
    read_pointer,
    reserved_bits,
    run_heads,
    set_copied,
    subcluster_kind,
    subcluster_kinds,
    with_zero_flag,
    without_copied,
    without_zero_flag,
    zero_entry,
)
from formats.qcow2.tables import compressed_entry

COPIED, COMPRESSED = 1 << 63, 1 << 62
SHAPES = [
    Shape(bits, extended, version, external)
    for bits, extended, version, external in product((9, 12, 16, 21), (False, True), (2, 3), (False, True))
    if not (extended and (version == 2 or bits < 14))
]


def random_words(rng: random.Random, count: int, shape: Shape) -> list[int]:
    """Garbage, and entries that differ from good ones in a bit or two."""
    out = []
    for _ in range(count):
        word = rng.choice(
            (0, 0, rng.getrandbits(64), rng.getrandbits(20) << shape.cluster_bits, rng.getrandbits(47) << 9)
        )
        word |= rng.choice((0, COPIED, COPIED, COMPRESSED, 1))
        if rng.random() < 0.3:
            word ^= 1 << rng.randrange(64)
        out.append(word & ((1 << 64) - 1))
    return out


def random_bitmaps(rng: random.Random, count: int) -> list[int]:
    return [
        rng.choice((0, ALL_ALLOCATED, rng.getrandbits(64), rng.getrandbits(32), 1 << rng.randrange(64)))
        for _ in range(count)
    ]


def array(words: list[int]) -> np.ndarray:
    return np.array(words, dtype=np.uint64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_l2_entry_reads_alone_as_it_does_in_a_column(shape: Shape) -> None:
    rng = random.Random(f"{shape}")
    words = random_words(rng, 4000, shape)
    bitmaps = random_bitmaps(rng, 4000) if shape.extended_l2 else [0] * 4000
    guests = [
        rng.choice((word & 0x00FF_FFFF_FFFF_FE00, 0, rng.getrandbits(30) << shape.cluster_bits)) for word in words
    ]
    each = L2Entries(array(words), shape, array(bitmaps) if shape.extended_l2 else None, array(guests).astype(np.int64))
    start, end = each.range
    for number, (word, bitmap, guest) in enumerate(zip(words, bitmaps, guests, strict=True)):
        one = read_l2(word, shape, bitmap, guest)
        assert one.kind == each.kind[number], hex(word)
        assert one.faults == each.faults[number], hex(word)
        assert (one.start, one.end) == ((int(start[number]), int(end[number])) if end[number] else (NO_HOST, NO_HOST))
        assert bool(one.faults & BLOCKING) == (each.driver_kind[number] == ClusterType.INVALID)
        assert (one.start != NO_HOST and past_end(one.start, one.end - one.start, 1 << 30, shape.cluster_size)) == bool(
            each.beyond(1 << 30)[number]
        )


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.extended_l2], ids=str)
def test_subclusters_read_alone_as_they_do_in_a_column(shape: Shape) -> None:
    rng = random.Random(f"sub {shape}")
    words, bitmaps = random_words(rng, 300, shape), random_bitmaps(rng, 300)
    each = L2Entries(array(words), shape, array(bitmaps))
    kinds = subcluster_kinds(each)
    for number, (word, bitmap) in enumerate(zip(words, bitmaps, strict=True)):
        stops = l2_faults(word, shape, bitmap) & BLOCKING
        for sub in range(SUBCLUSTERS):
            wanted = ClusterType.INVALID if stops else subcluster_kind(word, bitmap, sub, shape)
            assert kinds[number, sub] == wanted


@pytest.mark.parametrize("table", list(PointerTable))
@pytest.mark.parametrize("bits", [9, 16, 21])
def test_a_pointer_reads_alone_as_it_does_in_a_column(table: PointerTable, bits: int) -> None:
    shape = Shape(bits)
    words = random_words(random.Random(f"{table} {bits}"), 4000, shape)
    each = Pointers(array(words), table, shape)
    for number, word in enumerate(words):
        one = read_pointer(word, table, shape)
        assert one.kind == each.kind[number]
        assert one.faults == each.faults[number], hex(word)
        assert max(one.start, 0) == each.offset[number]
        assert (one.start != NO_HOST and one.start >= 1 << 40) == bool(each.beyond(1 << 40)[number])


@pytest.mark.parametrize(
    ("word", "bitmap", "shape", "faults"),
    [
        (0, 0, Shape(16), 0),
        (COPIED | 0x50000, 0, Shape(16), 0),
        (COPIED | 0x50002, 0, Shape(16), Fault.RESERVED),
        (COPIED | 0x50000 | 1 << 56, 0, Shape(16), Fault.RESERVED),
        (COPIED | 0x50200, 0, Shape(16), Fault.UNALIGNED),
        (COPIED | 0x50200, 0, Shape(9), 0),
        (COPIED, 0, Shape(16), Fault.COPIED_NOWHERE),
        (COPIED, 0, Shape(16, data_file=True), 0),
        (1, 0, Shape(16), 0),
        (1, 0, Shape(16, version=2), Fault.ZERO_VERSION_2),
        (1, 0, Shape(16, True), Fault.BIT_0),
        (COMPRESSED | COPIED | 0x50003, 0, Shape(16), Fault.COPIED_COMPRESSED),
        (COMPRESSED | 1 << 61 | 1 << 55, 0, Shape(9), 0),
        (COMPRESSED | 1 << 57, 0, Shape(9), Fault.RESERVED),
        (COMPRESSED | 0x50003, 1, Shape(16, True), Fault.COMPRESSED_BITMAP),
        (COMPRESSED | 0x50003, 0, Shape(16, data_file=True), Fault.COMPRESSED_EXTERNAL),
        (0x50000, 1 | 1 << 32, Shape(16, True), Fault.SUBCLUSTER_BOTH),
        (0, 1, Shape(16, True), Fault.SUBCLUSTER_NOWHERE),
        (0, 1 << 32, Shape(16, True), 0),
        (COPIED, 1, Shape(16, True, data_file=True), 0),
        (COPIED | 0x60000, 0, Shape(16, data_file=True), Fault.ELSEWHERE),
        (COPIED | 1, 0, Shape(16, data_file=True), 0),
    ],
)
def test_faults_of_single_l2_entries(word: int, bitmap: int, shape: Shape, faults: int) -> None:
    assert read_l2(word, shape, bitmap, 0 if shape.data_file else None).faults == faults


@pytest.mark.parametrize(
    ("word", "table", "wanted"),
    [
        (0, PointerTable.L1, Pointer(PointerKind.NONE, NO_HOST, NO_HOST, 0)),
        (COPIED, PointerTable.L1, Pointer(PointerKind.NONE, NO_HOST, NO_HOST, Fault.COPIED_NOWHERE)),
        (COPIED | 0x30000, PointerTable.L1, Pointer(PointerKind.CLUSTER, 0x30000, 0x40000, 0)),
        (0x30001, PointerTable.REFCOUNT, Pointer(PointerKind.CLUSTER, 0x30000, 0x40000, Fault.RESERVED)),
        (0x30200, PointerTable.REFCOUNT, Pointer(PointerKind.CLUSTER, 0x30200, 0x40200, Fault.UNALIGNED)),
        (1 << 60, PointerTable.REFCOUNT, Pointer(PointerKind.CLUSTER, 1 << 60, (1 << 60) + 0x10000, 0)),
        (1, PointerTable.BITMAP, Pointer(PointerKind.ONES, NO_HOST, NO_HOST, 0)),
        (0x30001, PointerTable.BITMAP, Pointer(PointerKind.CLUSTER, 0x30000, 0x40000, Fault.ONES_PLACED)),
    ],
)
def test_single_pointers(word: int, table: PointerTable, wanted: Pointer) -> None:
    assert read_pointer(word, table, Shape(16)) == wanted


def test_the_zero_flag_outweighs_copied_at_offset_zero_of_a_data_file() -> None:
    """QEMU asks for the zero flag first: nothing is allocated, so no offset can be in the wrong place."""
    shape = Shape(16, data_file=True)
    assert read_l2(COPIED | 1, shape, 0, 0x70000) == (ClusterType.ZERO_PLAIN, NO_HOST, NO_HOST, 0)
    assert read_l2(COPIED, shape, 0, 0).kind is ClusterType.NORMAL


def test_a_driver_stops_at_the_whole_cluster_when_one_subcluster_contradicts_itself() -> None:
    shape = Shape(16, True)
    bitmap = 0b11 | 1 << SUBCLUSTERS
    assert {driver_kind(COPIED | 0x50000, bitmap, sub, 0, shape) for sub in range(SUBCLUSTERS)} == {ClusterType.INVALID}
    assert first_blocking(l2_faults(COPIED | 0x50000, shape, bitmap)) is Fault.SUBCLUSTER_BOTH
    assert first_blocking(l2_faults(COPIED | 0x50000, shape, 1)) is None


@pytest.mark.parametrize("bits", [9, 12, 16, 21])
def test_a_compressed_entry_covers_the_sectors_of_its_data(bits: int) -> None:
    word = compressed_entry(0x12345, 500, bits)
    assert packed_range(word, Shape(bits)) == (0x12345, 0x12600)
    assert packed_range(word | COPIED, Shape(bits)) == packed_range(word, Shape(bits))


def test_a_range_is_past_the_end_when_a_whole_cluster_of_it_is() -> None:
    assert not past_end(0x30000, 0x10000, 0x30001, 0x10000)
    assert past_end(0x30000, 0x10000, 0x30000, 0x10000)
    assert not past_end(0x2FE00, 0x400, 0x30000, 0x10000)
    assert past_end(0x3FC00, 0x400, 0x30000, 0x10000)
    assert past_end(array([0x2FE00, 0x3FC00]), array([0x400, 0x400]), 0x30000, 0x10000).tolist() == [False, True]
    assert past_end(array([0, 1 << 63]), 1 << 20, 0x1000, 0x1000).tolist() == [True, True]


@pytest.mark.parametrize("shape", [Shape(9), Shape(12, version=2), Shape(16, data_file=True), Shape(16)], ids=str)
def test_every_entry_of_a_run_says_the_same_or_goes_on(shape: Shape) -> None:
    rng = random.Random(f"runs {shape}")
    for _ in range(60):
        words: list[int] = []
        while len(words) < 200:
            start = rng.choice(random_words(rng, 4, shape))
            step = rng.choice((0, shape.cluster_size, shape.cluster_size))
            words += [(start + number * step) % (1 << 64) for number in range(rng.randrange(1, 9))]
        heads = run_heads(array(words), shape).tolist()
        assert heads[0] == 0
        head = 0
        for number, word in enumerate(words):
            if number in heads:
                head = number
                continue
            first, here = read_l2(words[head], shape), read_l2(word, shape)
            assert here.kind is first.kind and here.faults & ~Fault.UNALIGNED == first.faults & ~Fault.UNALIGNED
            assert here.kind is not ClusterType.COMPRESSED
            assert here.start == (
                NO_HOST if first.start == NO_HOST else first.start + (number - head) * shape.cluster_size
            )


def test_a_table_of_one_run_is_told_from_all_others() -> None:
    shape, size = Shape(9), 1 << 20
    run = [COPIED | 0x4000 + number * 512 for number in range(64)]
    tables = {
        "one run": (run, True),
        "without COPIED": ([without_copied(word) for word in run], True),
        "flags mixed": ([*run[:9], without_copied(run[9]), *run[10:]], False),
        "zero flags": ([with_zero_flag(word) for word in run], False),
        "a gap": ([*run[:9], 0, *run[10:]], False),
        "past the end": ([word + size for word in run], False),
        "compressed": ([word | COMPRESSED for word in run], False),
        "empty": ([0] * 64, False),
    }
    words = array([word for table, _ in tables.values() for word in table]).reshape(len(tables), 64)
    assert one_run_tables(words, None, shape, size).tolist() == [wanted for _, wanted in tables.values()]
    assert not one_run_tables(words, None, Shape(9, data_file=True), size).any()
    bitmaps = np.full(words.shape, ALL_ALLOCATED, dtype=np.uint64)
    bitmaps[1, 7] |= np.uint64(1 << SUBCLUSTERS)
    assert one_run_tables(words[:2], bitmaps[:2], shape, size).tolist() == [True, False]


def test_plain_data_is_found_as_far_as_it_lies_behind_one_another() -> None:
    shape = Shape(16)
    words = [pointing_to(0x50000), 0x60000, pointing_to(0x70000), pointing_to(0x90000), 1, COMPRESSED | 5, 0x50200, 0]
    assert plain_run(words, 0, 8, shape) == (0x50000, 3)
    assert plain_run(words, 0, 2, shape) == (0x50000, 2)
    assert plain_run(words, 0, 8, shape, owned=True) == (0x50000, 1)
    assert plain_run(words, 2, 6, shape, owned=True) == (0x70000, 1)
    assert {plain_run(words, index, 1, shape) for index in range(4, 8)} == {(NO_HOST, 0)}
    assert plain_run([COPIED], 0, 1, Shape(16, data_file=True)) == (0, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plain_data_is_what_reads_as_data_without_a_fault(shape: Shape) -> None:
    for word in random_words(random.Random(f"plain {shape}"), 2000, shape):
        one = read_l2(word, shape)
        plain = one.kind is ClusterType.NORMAL and not one.faults
        assert (plain_run([word], 0, 1, shape)[1] == 1) == plain, hex(word)


def test_reserved_bits_are_told_by_table() -> None:
    assert reserved_bits(1 << 56 | 1, Shape(16)) == 1 << 56
    assert reserved_bits(1 << 56 | 1, Shape(16, True)) == 1 << 56 | 1
    assert reserved_bits(COMPRESSED | 1 << 57, Shape(9)) == 1 << 57
    assert reserved_bits(1 << 62 | 1, Shape(16), PointerTable.L1) == 1 << 62 | 1
    assert reserved_bits(1 << 62 | 1, Shape(16), PointerTable.REFCOUNT) == 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_cleaned_table_has_no_reserved_bits_and_says_the_same(shape: Shape) -> None:
    words = array(random_words(random.Random(f"cleaned {shape}"), 2000, shape))
    each = L2Entries(words, shape)
    cleaned = L2Entries(each.cleaned, shape)
    assert not cleaned.fault(Fault.RESERVED).any()
    assert (cleaned.kind == each.kind).all() and (cleaned.offset == each.offset)[each.standard].all()
    for table in PointerTable:
        pointers = Pointers(words, table, shape)
        after = Pointers(pointers.cleaned, table, shape)
        assert not (after.faults & (Fault.RESERVED | Fault.ONES_PLACED)).any()
        assert (after.offset == pointers.offset).all()


def test_a_pointer_inside_the_file_is_aligned_and_starts_before_its_end() -> None:
    words = array([0, COPIED, 0x10000, 0x18000, COPIED | 0x20000, 0x30000, 1 << 60 | 0x10000])
    inside = Pointers(words, PointerTable.L1, Shape(16)).inside(0x30000)
    assert inside.tolist() == [False, False, True, False, True, False, True]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_sound_entry_has_an_impossible_bit(shape: Shape) -> None:
    size = 1 << 40
    plain, packed, flag = impossible_bits(shape, size)
    for word in random_words(random.Random(f"impossible {shape}"), 2000, shape):
        one = read_l2(word, shape)
        if not one.faults and one.kind is ClusterType.COMPRESSED and one.start < size:
            assert word & packed == flag
        if not one.faults and one.kind is ClusterType.NORMAL and (one.start < size or shape.data_file):
            assert not word & plain


def test_entries_are_changed_flag_by_flag() -> None:
    assert set_copied(0x50000, True) == pointing_to(0x50000) and set_copied(pointing_to(0x50000), False) == 0x50000
    both = set_copied(array([0x50000, pointing_to(0x60000)]), np.array([True, False]))
    assert both.tolist() == [pointing_to(0x50000), 0x60000]
    assert moved_to(pointing_to(0x50000) | 1, 0x70000) == pointing_to(0x70000) | 1
    assert as_plain(COMPRESSED | pointing_to(0x50000)) == pointing_to(0x50000)
    assert without_zero_flag(with_zero_flag(0x50000)) == 0x50000
    assert [zero_entry(Shape(16)), zero_entry(Shape(16, version=2)), zero_entry(Shape(16, True))] == [1, 0, 0]
    entries, bitmaps = array([1, 2]), array([3, 4])
    assert interleaved(entries, bitmaps).tolist() == [1, 3, 2, 4] and interleaved(entries, None) is entries
