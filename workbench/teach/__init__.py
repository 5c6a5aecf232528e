"""Explanations of everything in an image: what it is, what its value means here, limits, what QEMU does, where the
specification says so. The texts are data: Markdown files beside this module, sections keyed by schema path.

    from workbench.teach import explain, facts_of, facts_of_node, facts_of_table

    facts = facts_of(meta)                                        # once per image: header, geometry, counts
    facts |= facts_of_table(meta, table, index)                   # for an entry: index, guest/host range it describes
    facts |= facts_of_node(node)                                  # for the selected node: value, offset, size, raw, symbol
    explanation = explain(node.schema, facts)                     # never fails: an unknown path gets the nearest text
    explanation.title; explanation.what; explanation.here         # plain sentences (Markdown)
    explanation.paragraphs                                        # (("", what), ("Here", …), …): for plain widgets
    explanation.markdown()                                        # the whole text for a Markdown widget

`explain(schema)` takes a `Node.schema` (`header.cluster_bits`, `l2.entries.row.entry.copied`, `gap`) or the word of a
structure (`l1`, `refcount-block`, `unused`, `tail`, `data-file`, `backing-name`, … : the values of
`workbench.engine.structures.Part` and of the workbench's item kinds). Without facts only the general text is given.
Layout names of `formats` (`l2-entry-compressed.sectors`) are keys as well.
"""

from workbench.teach.explaining import Explanation, explain, resolve
from workbench.teach.facts import facts_of, facts_of_node, facts_of_table
from workbench.teach.texts import Section, keys, sections

__all__ = [
    "Explanation",
    "Section",
    "explain",
    "facts_of",
    "facts_of_node",
    "facts_of_table",
    "keys",
    "resolve",
    "sections",
]
