"""Where guest bytes come from: which file of the chain, which of its bytes. Reads: runs in a worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.engine.explain import explain_guest
from workbench.engine.image import Image
from workbench.engine.layers import MissingLayer, Qcow2Layer
from workbench.engine.mapping import Extent
from workbench.engine.metadata import Region
from workbench.render.sizes import span


@dataclass(frozen=True, slots=True)
class Source:
    """Guest bytes [start, end) with one source. text: what it is.  whose: the file, in words.  note: what else to know.

    host: byte of that file that holds `start`.  run: its bytes with the compressed data.
    """

    start: int
    end: int
    text: str
    whose: str = ""
    host: int | None = None
    run: Region | None = None
    note: str = ""

    def words(self, offset: int) -> str:
        """About the one byte at guest offset `offset`."""
        if self.run is not None:
            return f"{self.text} in bytes {span(self.run.offset, self.run.length)} of {self.whose}{self.note}"
        if self.host is not None:
            return f"{self.text}: byte {self.host + offset - self.start:#x} of {self.whose}{self.note}"
        return f"{self.text}{self.note}"


def sources_of(image: Image, start: int, end: int) -> list[Source]:
    """The sources of guest bytes [start, end), in order. Raises what reading the tables raises (a QwbError)."""
    end = min(end, image.size)
    return [_source(image, each) for each in image.extents(start, end - start)] if start < end else []


def _source(image: Image, extent: Extent) -> Source:
    layer = image.chain[min(extent.depth, len(image.chain) - 1)]
    if not extent.present and not extent.data:
        return Source(extent.start, extent.end, _absent(image))
    whose = "this image" if extent.depth == 0 else Path(layer.path).name
    if extent.compressed and isinstance(layer, Qcow2Layer):
        run = explain_guest(layer.meta, extent.start).run
        return Source(extent.start, extent.end, "compressed", whose, run=run)
    if extent.zero and not extent.data:
        return Source(extent.start, extent.end, f"zeros, says {whose}")
    text = note = ""
    if isinstance(layer, Qcow2Layer):
        if layer.meta.header.has("data_file"):
            whose = Path(extent.path or layer.meta.data_file_name or "?").name
            text = "external data" if layer.data is not None else "external data (not open)"
            whose = whose if layer.data is not None else Path(layer.meta.data_file_name or "?").name
        if layer.meta.header.crypt_method == 1:
            note = ", decrypted; noise? The old AES takes any passphrase: p asks again"
        elif layer.meta.header.crypt_method:
            note = ", decrypted"
    host = int(extent.host) if extent.host is not None else _stored_at(layer, extent)
    return Source(extent.start, extent.end, text or "data", whose, host, note=note)


def _stored_at(layer: object, extent: Extent) -> int | None:
    """Where encrypted data is: an extent has no host offset then, since the bytes there are not the guest's."""
    if isinstance(layer, Qcow2Layer):
        return explain_guest(layer.meta, extent.start).host
    return None


def _absent(image: Image) -> str:
    """Why nobody answers for some bytes: nothing was ever written there, or the file that would know is not open."""
    last = image.chain[-1]
    name = None
    if isinstance(last, MissingLayer):
        name = last.path
    elif isinstance(last, Qcow2Layer):
        name = last.meta.backing_name
    if name:
        return f"not stored here: {Path(name).name} would say, and is not open (zeros are shown; F5 asks again)"
    return "not allocated: zeros"
