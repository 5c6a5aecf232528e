"""Base images: healthy qcow2 images over the whole feature list, each built by real QEMU tools under a name.

``BASES["v3-64k"].build(folder)`` leaves ``image.qcow2`` and its companions in `folder`. Run QEMU tools with that folder
as the working directory: QEMU looks there for an external data file.
"""

from __future__ import annotations

from sample_images import bases_chains, bases_crypto, bases_features, bases_layout
from sample_images.base import Base

BASES: dict[str, Base] = bases_chains.FOUND | bases_crypto.FOUND | bases_features.FOUND | bases_layout.FOUND
