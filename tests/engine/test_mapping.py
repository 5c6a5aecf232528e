"""L2 entries become runs: every kind of entry, every contradiction, and the vectorised result equals a naive one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from formats.qcow2.entries import NO_HOST, ClusterType
from formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, ZERO
from tests.engine.tiny import tiny
from workbench.engine.explain import Outcome, explain_guest
from workbench.engine.mapping import MappingRules, Runs, decode_l2, diagnose, join, one_run
from workbench.engine.metadata import load_metadata
from workbench.units import Geometry

C = 1 << 16
T = ClusterType
PLAIN = MappingRules(Geometry(16))
EXTENDED = MappingRules(Geometry(16, extended_l2=True))
EXTERNAL = MappingRules(Geometry(16), data_file=True)


def runs(words: list[int], rules: MappingRules = PLAIN, guest: int = 0) -> list[tuple[int, int, int, int]]:
    return list(decode_l2(np.array(words, dtype=np.uint64), guest, rules))


def naive(words: list[int], rules: MappingRules) -> list[tuple[int, int, int, int]]:
    """One entry at a time, by the specification; neighbours merged afterwards."""
    cluster = rules.geometry.cluster_size
    found: list[tuple[int, int, int, int]] = []
    for index, word in enumerate(words):
        guest, host = index * cluster, word & OFFSET_MASK
        kind, where = T.NORMAL, host
        if word & COMPRESSED:
            kind, where = T.COMPRESSED, word & (COMPRESSED - 1)
        elif word & ZERO:
            kind, where = (T.ZERO_ALLOC, host) if host else (T.ZERO_PLAIN, NO_HOST)
        elif not host and not (rules.data_file and word & COPIED):
            kind, where = T.UNALLOCATED, NO_HOST
        if (
            (kind in (T.NORMAL, T.ZERO_ALLOC) and host % cluster)
            or (kind in (T.ZERO_PLAIN, T.ZERO_ALLOC) and rules.version < 3)
            or (rules.data_file and (kind is T.COMPRESSED or (kind in (T.NORMAL, T.ZERO_ALLOC) and host != guest)))
        ):
            kind, where = T.INVALID, NO_HOST
        found.append((guest, cluster, kind, where))
    return found


def spread(rows: list[tuple[int, int, int, int]], unit: int) -> list[tuple[int, int, int, int]]:
    """Runs cut back into single clusters."""
    out = []
    for start, length, kind, host in rows:
        for at in range(0, length, unit):
            moved = host + at if host != NO_HOST and kind != T.COMPRESSED else host
            out.append((start + at, unit, kind, moved))
    return out


def test_each_kind_of_standard_entry() -> None:
    packed = COMPRESSED | 3 << 54 | 0x12345
    words = [0, ZERO, COPIED | 5 * C, 7 * C | ZERO, packed]
    assert runs(words) == [
        (0, C, T.UNALLOCATED, NO_HOST),
        (C, C, T.ZERO_PLAIN, NO_HOST),
        (2 * C, C, T.NORMAL, 5 * C),
        (3 * C, C, T.ZERO_ALLOC, 7 * C),
        (4 * C, C, T.COMPRESSED, packed & (COMPRESSED - 1)),
    ]


def test_neighbours_merge_only_where_type_and_host_go_on() -> None:
    words = [COPIED | n * C for n in (5, 6, 7, 9, 8)] + [0, 0, 0, ZERO, ZERO]
    assert [(start // C, length // C, kind) for start, length, kind, _ in runs(words)] == [
        (0, 3, T.NORMAL),
        (3, 1, T.NORMAL),
        (4, 1, T.NORMAL),
        (5, 3, T.UNALLOCATED),
        (8, 2, T.ZERO_PLAIN),
    ]


@pytest.mark.parametrize(
    ("word", "rules", "says"),
    [
        (5 * C + 512, PLAIN, "0x50200 is not cluster aligned"),
        (ZERO, MappingRules(Geometry(16), version=2), "zero flag in a version 2"),
        (COMPRESSED | 0x1000, EXTERNAL, "external data file"),
        (5 * C, EXTERNAL, "differs from the guest offset"),
    ],
)
def test_an_entry_no_driver_would_use_is_invalid_and_says_why(word: int, rules: MappingRules, says: str) -> None:
    assert runs([word], rules) == [(0, C, T.INVALID, NO_HOST)]
    assert says in diagnose(word, 0, 0, rules)


def test_host_offset_zero_is_data_only_with_copied_in_an_external_file() -> None:
    assert runs([COPIED, COPIED | C, COPIED | 2 * C], EXTERNAL) == [(0, 3 * C, T.NORMAL, 0)]
    assert runs([0, C], EXTERNAL) == [(0, C, T.UNALLOCATED, NO_HOST), (C, C, T.NORMAL, C)]
    assert [kind for _, _, kind, _ in runs([COPIED])] == [T.UNALLOCATED]


def test_subclusters_of_one_entry() -> None:
    sub = C // 32
    bitmap = 0b0011 | 0b0100 << 32
    assert runs([5 * C, bitmap], EXTENDED) == [
        (0, 2 * sub, T.NORMAL, 5 * C),
        (2 * sub, sub, T.ZERO_ALLOC, 5 * C + 2 * sub),
        (3 * sub, 29 * sub, T.UNALLOCATED_ALLOC, 5 * C + 3 * sub),
    ]
    assert runs([0, 1 << 32], EXTENDED) == [(0, sub, T.ZERO_PLAIN, NO_HOST), (sub, 31 * sub, T.UNALLOCATED, NO_HOST)]


@pytest.mark.parametrize(
    ("words", "says"),
    [((5 * C, 1 | 1 << 32), "both allocated and zero"), ((0, 1), "without host offset"), ((5 * C + 512, 1), "aligned")],
)
def test_contradicting_subclusters_make_the_whole_cluster_invalid(words: tuple[int, int], says: str) -> None:
    assert runs([*words, 6 * C, (1 << 32) - 1], EXTENDED) == [(0, C, T.INVALID, NO_HOST), (C, C, T.NORMAL, 6 * C)]
    assert says in diagnose(*words, 0, EXTENDED)


def test_compressed_clusters_never_merge_even_with_equal_descriptors() -> None:
    packed = COMPRESSED | 0x12345
    assert len(runs([packed, packed])) == 2
    assert [(s, n) for s, n, _, _ in runs([packed, 0, packed, 0], EXTENDED)] == [(0, C), (C, C)]


@pytest.mark.parametrize("rules", [PLAIN, EXTERNAL, MappingRules(Geometry(16), version=2)])
@pytest.mark.parametrize("seed", range(6))
def test_random_tables_decode_as_one_entry_at_a_time(seed: int, rules: MappingRules) -> None:
    rng = random.Random(seed)
    choices = [
        0,
        ZERO,
        COPIED,
        C,
        COPIED | C,
        2 * C | ZERO,
        COMPRESSED | 7,
        C - 512,
        (1 << 56) - C,
        1 << 56,
        C | 1 << 60,
    ]
    words: list[int] = []
    while len(words) < 600:
        word = rng.choice(choices)
        for step in range(rng.randrange(1, 6)):
            words.append((word + step * C * rng.choice([0, 1, 1, 1])) & (1 << 64) - 1)
    assert spread(runs(words, rules), C) == naive(words, rules)


def test_clipping_moves_host_offsets_but_not_descriptors() -> None:
    both = join([one_run(0, 4 * C, T.NORMAL, 10 * C), one_run(4 * C, C, T.COMPRESSED, 777)])
    assert list(both.clip(C + 512, 4 * C + 100)) == [
        (C + 512, 3 * C - 512, T.NORMAL, 11 * C + 512),
        (4 * C, 100, T.COMPRESSED, 777),
    ]
    assert list(both.clip(4 * C + 5, 4 * C + 6)) == [(4 * C + 5, 1, T.COMPRESSED, 777)]
    assert len(both.clip(9 * C, 10 * C)) == 0
    assert isinstance(both.clip(0, 5 * C), Runs)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("version", "incompatible"),
    [(3, 0), (2, 0), (3, 4), (3, 16), (3, 20)],
    ids=["plain", "v2", "data-file", "extended", "both"],
)
def test_a_translation_ends_where_the_map_says(version: int, incompatible: int, seed: int) -> None:
    """explain and map read the same entries; neither may say what the other denies."""
    rng, step = random.Random(seed), 2 if incompatible & 16 else 1
    words: list[int] = []
    for number in range(16):
        place = rng.choice((0, number, 5, 9, 9, 40)) * C
        flags = rng.choice((0, COPIED, COPIED, COPIED | ZERO, ZERO, COMPRESSED, 512, 2))
        words += [place | flags, rng.choice((0, 0xFFFFFFFF, 1 << 40, 3 | 1 << 33, 3 | 2 << 32))][:step]
    meta = load_metadata(tiny(words, version=version, incompatible=incompatible))
    assert meta.geometry is not None
    rules = MappingRules(meta.geometry, version, bool(incompatible & 4))
    unit, seen = meta.geometry.subcluster_size, set()
    for start, length, kind, host in decode_l2(np.array(words, dtype=np.uint64), 0, rules):
        for guest in range(start, start + length, unit):
            found = explain_guest(meta, guest + unit - 1)
            wanted = OUTCOMES[T(kind)]
            if kind == T.NORMAL and not rules.data_file and (host + guest - start) // C * C >= meta.file_size:
                wanted = Outcome.BROKEN
            assert found.outcome is wanted, (hex(guest), found)
            seen.add(wanted)
    assert len(seen) >= 2


OUTCOMES = {
    T.UNALLOCATED: Outcome.UNALLOCATED,
    T.UNALLOCATED_ALLOC: Outcome.UNALLOCATED,
    T.ZERO_PLAIN: Outcome.ZERO,
    T.ZERO_ALLOC: Outcome.ZERO,
    T.NORMAL: Outcome.DATA,
    T.COMPRESSED: Outcome.COMPRESSED,
    T.INVALID: Outcome.BROKEN,
}


def test_zero_flags_in_an_external_file_keep_their_clusters_apart_at_offset_zero() -> None:
    assert runs([COPIED | ZERO, COPIED | ZERO | C], EXTERNAL) == [
        (0, C, T.ZERO_PLAIN, NO_HOST),
        (C, C, T.ZERO_ALLOC, C),
    ]


def test_a_contradiction_at_offset_zero_of_an_external_file_is_told_as_one() -> None:
    rules = MappingRules(Geometry(16, extended_l2=True), data_file=True)
    assert "both allocated and zero" in diagnose(COPIED, 1 | 1 << 32, 0, rules)


def test_a_byte_of_a_last_cluster_that_the_file_has_in_part_is_data() -> None:
    storage = tiny([COPIED | 9 * C])
    storage.truncate(9 * C + 512)
    assert explain_guest(load_metadata(storage), 4096).outcome is Outcome.DATA
    storage.truncate(9 * C)
    assert explain_guest(load_metadata(storage), 4096).outcome is Outcome.BROKEN
