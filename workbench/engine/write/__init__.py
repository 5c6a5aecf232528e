"""The write engine: table cache, allocation, guest writes, overlap guard. `Writer` is what an open image uses."""

from workbench.engine.write.guard import Kind
from workbench.engine.write.writer import WriteCounters, Writer

__all__ = ["Kind", "WriteCounters", "Writer"]
