"""Editing one field or table entry by hand: its bits decoded, a new value typed or toggled; then it goes the way of any repair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen
from textual.widgets import Input, Static

from formats.annotate import Node, NodeKind
from workbench.engine.metadata import Metadata
from workbench.engine.tables import Table, TableKind, read_entry
from workbench.render.sizes import count
from workbench.tui.commands import Command, bindings
from workbench.tui.outline import Outline
from workbench.tui.place import Place
from workbench.tui.prepare import Prepared
from workbench.tui.screens.dialogs import TextDialog
from workbench.tui.screens.repair_flow import Edit
from workbench.tui.standing import stands
from workbench.tui.widgets.chrome import Footer, Line
from workbench.tui.widgets.rows import Part, Rows, cut
from workbench.units import parse_size

if TYPE_CHECKING:
    from workbench.tui.app import Workbench

MOST: Final = 64
"""Bytes that can be typed at once."""


class NotEditable(Exception):
    """There is no single field or entry here; the text says what to do."""


@dataclass(frozen=True, slots=True)
class BitField:
    """Bits low..high of a value. keeps: how many low bits the shown value has besides (an offset keeps its place)."""

    name: str
    low: int
    high: int
    keeps: int
    doc: str

    @property
    def flag(self) -> bool:
        return self.low == self.high

    @property
    def mask(self) -> int:
        return ((1 << (self.high - self.low + 1)) - 1) << self.low

    def get(self, value: int) -> int:
        """The field's value, as people write it."""
        return (value & self.mask) >> self.low << self.keeps

    def put(self, value: int, part: int) -> int:
        """`value` with the field set; ValueError when `part` does not fit."""
        placed = part >> self.keeps << self.low
        if placed & ~self.mask or part < 0 or placed >> self.low << self.keeps != part:
            raise ValueError(f"{part:#x} does not fit {self.name} (bits {self.low} to {self.high})")
        return value & ~self.mask | placed

    def text(self, value: int) -> str:
        part = self.get(value)
        return str(part) if self.flag or part < 10 else f"{part:#x}"


@dataclass(frozen=True, slots=True)
class Target:
    """What is edited. data: its bytes now.  number: whether they are one big-endian number.  shift, width: the bits of it
    that count (a refcount narrower than a byte).  free: bytes may be typed beyond it, up to `room`.
    """

    name: str
    offset: int
    data: bytes
    doc: str
    kind: str
    number: bool = True
    shift: int = 0
    width: int = 0
    fields: tuple[BitField, ...] = ()
    guest: tuple[tuple[int, int], ...] = ()
    room: int = 0

    @property
    def value(self) -> int:
        return int.from_bytes(self.data, "big") >> self.shift & (1 << self.bits) - 1

    @property
    def bits(self) -> int:
        return self.width or len(self.data) * 8

    def bytes_of(self, value: int) -> bytes:
        """The bytes with another value in them. ValueError when it does not fit."""
        if not 0 <= value < 1 << self.bits:
            raise ValueError(f"{value:#x} does not fit {self.bits} bits")
        mask = ((1 << self.bits) - 1) << self.shift
        whole = int.from_bytes(self.data, "big") & ~mask | value << self.shift
        return whole.to_bytes(len(self.data), "big")


def target_of(outline: Outline, found: Prepared, place: Place) -> Target:
    """The field, entry or byte that a place is on. Reads a few bytes; NotEditable where there is nothing single."""
    meta = outline.meta
    if found.table is not None and found.entry >= 0:
        return _entry_target(meta, found.table, found.entry)
    node = found.node
    if node is not None and found.record is not None:
        if node.kind is NodeKind.BITS:
            node = next((each for each in found.record.walk() if node in each.children), node)
        if node.kind in (NodeKind.FIELD, NodeKind.BITS) and 0 < len(node.raw) <= MOST:
            return _node_target(node, found)
    if place.view.value == "hex" and place.offset < meta.file_size:
        length = max(1, min(place.length, 8, meta.file_size - place.offset))
        return Target(
            f"bytes at {place.offset:#x}", place.offset, meta.storage.read(place.offset, length),
            "Plain bytes. What is typed replaces as many bytes as it has.", "data", number=False, room=min(MOST, meta.file_size - place.offset),
        )  # fmt: skip
    raise NotEditable("Put the cursor on one field (key 1), one entry (key 3) or one byte (key 2) to edit it.")


def _node_target(node: Node, found: Prepared) -> Target:
    kind = "header" if found.item.key in ("header", "extensions") else found.item.kind.value
    number = isinstance(node.value, int) and len(node.raw) <= 16
    fields = tuple(
        BitField(each.name, each.bits[0], each.bits[1], each.bits[0] if _in_place(each, node) else 0, each.doc)
        for each in node.children
        if each.bits is not None
    )
    name = node.path.partition(".")[2] or node.name
    return Target(name, node.offset, node.raw, node.doc, kind, number, fields=fields)


def _in_place(bit: Node, word: Node) -> bool:
    """Whether a bit field keeps its position: an offset whose low bits are implied zeros."""
    assert bit.bits is not None
    return bit.unit == "bytes" and bit.bits[0] > 0 and isinstance(word.value, int)


def _entry_target(meta: Metadata, table: Table, index: int) -> Target:
    words = read_entry(meta, table, index)
    assert meta.geometry is not None
    if words is None:
        raise NotEditable("The file ends before this entry: there are no bytes to edit.")
    bits = table.entry_bits(meta)
    offset = table.entry_offset(meta, index)
    size = max(1, bits // 8)
    shift, width = (index * bits % 8, bits) if bits < 8 else (0, 0)
    data = meta.storage.read(offset, size)
    layout = table.layout(meta, words[0])
    extra = 64 if len(words) == 2 else 0
    fields = [
        BitField(each.name, each.low + extra, each.high + extra, each.low if each.in_place else 0, each.doc)
        for each in layout or ()
    ]
    if extra:
        fields += [
            BitField("subclusters read as zeros", 32, 63, 0, "Bit 32 + n: subcluster n reads as zeros."),
            BitField("subclusters allocated", 0, 31, 0, "Bit n: subcluster n is in the host cluster."),
        ]
    guest: tuple[tuple[int, int], ...] = ()
    if table.kind in (TableKind.L1, TableKind.L2):
        guest = ((table.base + index * table.coverage(meta), table.coverage(meta)),)
    doc = {
        TableKind.REFCOUNT_BLOCK: "How many structures use this cluster. 0 means free: the next write may take it.",
        TableKind.L1: "Where the L2 table of this range lies.",
        TableKind.L2: "Where the guest's cluster lies.",
        TableKind.REFCOUNT_TABLE: "Where the refcount block of this range lies.",
        TableKind.BITMAP_TABLE: "Where a cluster of bitmap data lies.",
    }[table.kind]
    return Target(
        f"{table.name}[{index}]", offset, data, doc, table.kind.value, True, shift, width, tuple(fields), guest
    )


# The screen ----------------------------------------------------------------------------------------------------------


_G: Final = "Edit"
EDIT_COMMANDS: Final = (
    Command("hand.plan", "f2", "simulate", "See what this change does, before it is written", "", _G, (), 100),
    Command("hand.toggle", "space", "flip bit", "Flip the bit, or type the field's value", "", _G, ("bits",), 95),
    Command("hand.field", "enter", "set field", "Type a value for this field", "", _G, ("bits",), 94),
    Command("hand.pane", "tab", "value/bits", "From the value to its bits and back", "", _G, (), 90, True),
    Command("hand.leave", "escape", "leave", "Back; nothing is changed", "", _G, (), 80),
)
EDIT_BY_ID: Final = {each.id: each for each in EDIT_COMMANDS}


class BitsView(Rows):
    """The bit fields of a value, now and as typed."""

    head_height = 1

    def __init__(self, target: Target, **more: object) -> None:
        super().__init__(**more)
        self.target = target
        self.value = target.value if target.number else 0

    @property
    def current(self) -> BitField | None:
        fields = self.target.fields
        return fields[self.cursor] if 0 <= self.cursor < len(fields) else None

    def row_count(self) -> int:
        return len(self.target.fields)

    def empty_text(self) -> str:
        return "This value has no bit fields."

    def head_parts(self, line: int, width: int) -> Iterable[Part]:
        yield cut(" Bits    Field                        Now → new", width), ""

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        field = self.target.fields[row]
        old, new = field.text(self.target.value), field.text(self.value)
        where = f"{field.low}" if field.flag else f"{field.low}-{field.high}"
        yield f" {where:<8}", "dim"
        yield cut(field.name, 28) + " ", ""
        yield old, "bad" if old != new else "dim"
        used = 38 + len(old)
        if old != new:
            yield " → ", "dim"
            yield new, "good"
            used += 3 + len(new)
        yield "  " + cut(field.doc, width - used - 2), "dim"


class EditScreen(Screen[Edit | None]):
    """Asks for a new value. Answers the Edit to simulate, None when nothing is to change."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings(EDIT_COMMANDS)]
    DEFAULT_CSS = """
    EditScreen #edit-title { height: 1; }
    EditScreen > Static { padding: 0 1; height: auto; }
    EditScreen #banner { background: $surface; }
    EditScreen #value { border: none; height: 1; background: $boost; padding: 0 1; margin: 0 1; }
    EditScreen #value:focus { border: none; background-tint: $primary 15%; }
    EditScreen #preview { margin: 1 0; }
    EditScreen BitsView { height: 1fr; border-top: solid $panel; }
    """

    app: Workbench

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        self.data: bytes | None = target.data

    def compose(self) -> ComposeResult:
        target = self.target
        yield Line(id="edit-title")
        yield Static(
            f"{target.doc}\nThe new value is tried on a simulation first; nothing is written before you confirm, and u takes it back.",
            id="banner", markup=False,
        )  # fmt: skip
        how = "a number: hex with 0x, decimal, or 64k" if target.number else 'bytes in hex, or "text" in quotes'
        yield Static(f"\nNow: {self.shown(target.data)}\nNew value ({how}); Enter simulates it:", markup=False)
        yield Input(self.typed(target.data), id="value")
        yield Static("", id="preview", markup=False)
        yield BitsView(target, id="bits")
        yield Footer(id="footer")

    def shown(self, data: bytes) -> str:
        """Bytes and their number."""
        if not self.target.number:
            return data.hex(" ")
        value = self.number(data)
        decimal = "" if self.target.fields else f" ({value:,})"
        return f"{value:#x}{decimal}   bytes {data.hex(' ')}"

    def number(self, data: bytes) -> int:
        return int.from_bytes(data, "big") >> self.target.shift & (1 << self.target.bits) - 1

    def typed(self, data: bytes) -> str:
        """As it can be typed."""
        return f"{self.number(data):#x}" if self.target.number else data.hex(" ")

    def on_mount(self) -> None:
        if not stands(self):
            return
        target = self.target
        self.query_one("#edit-title", Line).put(
            [
                (" Edit by hand ", "here", ""),
                (f" {target.name}", "name", ""),
                (f"  at {target.offset:#x}, {count(len(target.data), 'byte')}", "dim", ""),
            ]
        )
        self.query_one("#bits").display = bool(target.fields)
        self.query_one("#value").focus()
        self.frame()

    def frame(self) -> None:
        shown = [each for each in EDIT_COMMANDS if self.allowed(each)]
        keys = {each.id: each.keys for each in shown}
        if isinstance(self.focused, Input):
            keys["hand.plan"] = "enter"
        self.query_one(Footer).show(shown, keys)

    def allowed(self, command: Command) -> bool:
        """Whether a command does something now."""
        if command.id == "hand.pane":
            return bool(self.target.fields)
        return not command.where or isinstance(self.focused, BitsView)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "command" and str(parameters[0]) in EDIT_BY_ID:
            return stands(self) and self.allowed(EDIT_BY_ID[str(parameters[0])])
        return super().check_action(action, parameters)

    def action_command(self, ident: str) -> None:
        """Run a command of this screen's table."""
        getattr(self, "do_" + ident.partition(".")[2])()

    def on_descendant_focus(self) -> None:
        self.frame()

    @on(Line.Hit)
    def hit(self, event: Line.Hit) -> None:
        event.stop()
        if event.value in EDIT_BY_ID and self.allowed(EDIT_BY_ID[event.value]):
            self.action_command(event.value)

    # The value

    @on(Input.Changed, "#value")
    def changed(self, event: Input.Changed) -> None:
        preview = self.query_one("#preview", Static)
        try:
            self.data = parse_value(self.target, event.value)
        except ValueError as error:
            self.data = None
            preview.update(f"✗ {error}")
            return
        same = self.data == self.target.data[: len(self.data)]
        preview.update("This is what is there now: nothing would change." if same else f"New: {self.shown(self.data)}")
        bits = self.query_one(BitsView)
        if self.target.number:
            bits.value = self.number(self.data)
        bits.refresh()

    def set_value(self, value: int) -> None:
        """From the bits into the field of text."""
        self.query_one("#value", Input).value = f"{value:#x}"

    @on(Input.Submitted, "#value")
    def submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.do_plan()

    def do_plan(self) -> None:
        """Go on to the simulation."""
        target = self.target
        if self.data is None:
            self.notify("That is no value for this field.", severity="warning")
            return
        if self.data == target.data[: len(self.data)]:
            self.notify("Nothing would change.")
            return
        self.dismiss(
            Edit(target.offset, self.data, target.name, target.kind, tuple(changes(target, self.data)), target.guest)
        )

    def do_toggle(self) -> None:
        bits = self.query_one(BitsView)
        field = bits.current
        if field is None or self.data is None:
            return
        if field.flag:
            self.set_value(bits.value ^ field.mask)
        else:
            self.do_field()

    def do_field(self) -> None:
        """Ask for the value of one bit field."""
        bits = self.query_one(BitsView)
        field = bits.current
        if field is None or self.data is None:
            return

        def given(text: str | None) -> None:
            if text is None:
                return
            try:
                self.set_value(field.put(bits.value, parse_number(text)))
            except ValueError as error:
                self.notify(str(error), severity="warning")

        self.app.push_screen(
            TextDialog(f"New value of {field.name}", note=field.doc, value=field.text(bits.value)), given
        )

    def do_pane(self) -> None:
        (self.query_one("#value") if isinstance(self.focused, BitsView) else self.query_one("#bits")).focus()

    def do_leave(self) -> None:
        self.dismiss(None)


def parse_number(text: str) -> int:
    """`0x10`, `16`, `64k`. ValueError says what is wrong."""
    try:
        return int(text.strip().replace("_", ""), 0)
    except ValueError:
        try:
            return parse_size(text.strip())
        except ValueError:
            raise ValueError(f"{text.strip() or 'nothing'} is no number") from None


def parse_value(target: Target, text: str) -> bytes:
    """The bytes that `text` means for a target. ValueError says what is wrong."""
    if target.number:
        return target.bytes_of(parse_number(text))
    clean = text.strip()
    if len(clean) >= 2 and clean[0] == clean[-1] == '"':
        data = clean[1:-1].encode()
    else:
        try:
            data = bytes.fromhex(clean)
        except ValueError:
            raise ValueError('bytes are pairs of hex digits, or "text" in quotes') from None
    if not data:
        raise ValueError("nothing was typed")
    if target.room:
        if len(data) > target.room:
            raise ValueError(f"at most {target.room} bytes here")
    elif len(data) != len(target.data):
        raise ValueError(f"this field has {len(target.data)} bytes, not {len(data)}")
    return data


def changes(target: Target, data: bytes) -> list[tuple[str, str, str]]:
    """(field, before, after) of what differs."""
    if not target.number:
        return [(target.name, target.data.hex(" "), data.hex(" "))]
    shift, mask = target.shift, (1 << target.bits) - 1
    old, new = target.value, int.from_bytes(data, "big") >> shift & mask
    found = [(each.name, each.text(old), each.text(new)) for each in target.fields if each.get(old) != each.get(new)]
    return [(target.name, f"{old:#x}", f"{new:#x}"), *found]
