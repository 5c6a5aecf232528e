"""The write engine against a bytearray: any sequence of operations, reopenings and cache sizes."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.campaigns.write_kit import new_image
from tests.engine.write.kit import assert_clean
from workbench.engine.create import CreateOptions
from workbench.engine.image import Image
from workbench.errors import StorageError
from workbench.storage.memory import MemoryStorage

SIZE = 768 << 10

SHAPES = (
    st.builds(
        dict,
        cluster_size=st.sampled_from([512, 4096, 65536]),
        refcount_bits=st.sampled_from([1, 4, 16, 64]),
        lazy_refcounts=st.booleans(),
        compression_type=st.sampled_from(["zlib", "zstd"]),
    )
    | st.builds(dict, cluster_size=st.sampled_from([16384, 65536]), extended_l2=st.just(True))
    | st.builds(dict, cluster_size=st.sampled_from([512, 4096]), compat=st.just(2))
)
CACHES = st.fixed_dictionaries(
    {
        "l2-cache-size": st.sampled_from([0, 1024, 8192, 1 << 20]),
        "refcount-cache-size": st.sampled_from([0, 8192]),
        "l2-cache-entry-size": st.just(512),
        "discard": st.sampled_from(["unmap", "ignore"]),
    }
)
OFFSETS = st.integers(0, SIZE - 1)
LENGTHS = st.one_of(st.integers(1, 4096), st.integers(1, 100_000))
BYTES = st.integers(1, 255)


class WriteMachine(RuleBasedStateMachine):
    """One image in memory and its model."""

    def __init__(self) -> None:
        super().__init__()
        self.image: Image | None = None

    @initialize(shape=SHAPES, caches=CACHES)
    def make(self, shape: dict[str, object], caches: dict[str, object]) -> None:
        self.storage = MemoryStorage(new_image(CreateOptions(SIZE, **shape)))  # type: ignore[arg-type]
        self.model = bytearray(SIZE)
        self._open(caches)

    def _open(self, caches: dict[str, object]) -> None:
        self.image = Image.open("<memory>", storage=self.storage, writable=True, options=caches)
        self.cluster = self.image.geometry.cluster_size

    @property
    def disk(self) -> Image:
        assert self.image is not None
        return self.image

    @rule(offset=OFFSETS, length=LENGTHS, byte=BYTES)
    def write(self, offset: int, length: int, byte: int) -> None:
        data = bytes([byte]) * min(length, len(self.model) - offset) if offset < len(self.model) else b""
        self.disk.write(offset if data else 0, data)
        self.model[offset : offset + len(data)] = data

    @rule(offset=OFFSETS, length=LENGTHS, unmap=st.booleans())
    def zero(self, offset: int, length: int, unmap: bool) -> None:
        length = max(0, min(length, len(self.model) - offset))
        if length:
            self.disk.write_zeroes(offset, length, unmap=unmap)
            self.model[offset : offset + length] = bytes(length)

    @rule(offset=OFFSETS, length=LENGTHS)
    def discard(self, offset: int, length: int) -> None:
        length = max(0, min(length, len(self.model) - offset))
        if not length:
            return
        self.disk.discard(offset, length)
        low, high = -(-offset // self.cluster) * self.cluster, offset + length
        high = high if high == len(self.model) else high // self.cluster * self.cluster
        if low < high:
            self.model[low:high] = bytes(high - low)

    @rule(offset=OFFSETS, byte=BYTES)
    def compressed(self, offset: int, byte: int) -> None:
        offset = offset // self.cluster * self.cluster
        data = bytes([byte]) * max(0, min(self.cluster, len(self.model) - offset))
        if not data:
            return
        try:
            self.disk.write_compressed(offset, data)
        except StorageError as error:
            assert "is allocated" in error.what
            return
        self.model[offset : offset + len(data)] = data

    @rule()
    def flush(self) -> None:
        self.disk.flush()

    @rule(caches=CACHES)
    def reopen(self, caches: dict[str, object]) -> None:
        self.disk.close()
        assert_clean(self.storage)
        self._open(caches)

    @rule(sectors=st.integers(1, SIZE // 512))
    def resize(self, sectors: int) -> None:
        size = sectors * 512
        self.disk.truncate(size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    @rule(offset=OFFSETS, length=LENGTHS)
    def read(self, offset: int, length: int) -> None:
        length = max(0, min(length, len(self.model) - offset))
        if length:
            assert self.disk.read(offset, length) == self.model[offset : offset + length]

    @precondition(lambda self: self.image is not None)
    @invariant()
    def size_is_known(self) -> None:
        assert self.disk.size == len(self.model)

    def teardown(self) -> None:
        if self.image is None:
            return
        assert self.image.read(0, self.image.size) == bytes(self.model)
        self.image.close()
        assert_clean(self.storage)
        with Image.open("<memory>", storage=MemoryStorage(self.storage.getvalue())) as again:
            assert again.read(0, again.size) == bytes(self.model)


TestWriteMachine = WriteMachine.TestCase
TestWriteMachine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
