"""Tables read by number: their rows are fixed, their columns are channels."""

from __future__ import annotations

from autoprune.network.call import Call, rule
from autoprune.network.labels import Planes, varying


@rule("embedding")
def embedding(call: Call) -> Planes:
    """The result carries the table's columns; a row is named by its number and stays."""
    table, numbers = call.args[0], call.args[1]
    kept = []
    for plane in call.planes_of(table):
        if 0 in varying(plane):
            call.coupling.freeze(plane, "rows of a table are named by number")
        else:
            call.coupling.claim(plane)
            kept.append(plane.reshape((1,) * numbers.ndim + (-1,)))
    return tuple(kept)
