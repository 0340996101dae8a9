"""Check the transfer syntaxes of many SOP classes once.

pynetdicom 3.0: ``AE.add_supported_context`` compares each transfer syntax with regular expressions, for each SOP class
anew: 0.1 s with those of an archive, whenever a node, a command or a receiver starts. It also gives each context a list
of its own, which a connection to a plain AE copies.
Upstream: not reported.
Remove when contexts with the same transfer syntaxes are added faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy

from pydicom.uid import UID
from pynetdicom import AE


def add_alike_contexts(
    entity: AE, sop_classes: Iterable[str], syntaxes: Iterable[str], *, both_roles: bool = False
) -> None:
    """Support SOP classes with the same transfer syntaxes, whose list they share."""
    roles = {"scu_role": True, "scp_role": True} if both_roles else {}
    supported, listed = entity._supported_contexts, list(syntaxes)
    checked = None
    for sop_class in map(UID, dict.fromkeys(sop_classes)):
        if checked is None or sop_class in supported:
            entity.add_supported_context(sop_class, listed, **roles)
            checked = checked or supported[sop_class]
        else:
            supported[sop_class] = copy(checked)
            supported[sop_class].abstract_syntax = sop_class
