"""Which rows and columns of which weights live and die together, as tracing finds them."""

from __future__ import annotations

import numpy as np
from drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, save
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from autoprune.network.trace import trace
from autoprune.testing.networks import tiny

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)


def draw() -> Figure:
    """Return the weights of a small residual network, coloured by group."""
    case = tiny("residual")
    network = trace(case.model, case.inputs)
    weights = [(name, p) for name, p in case.model.named_parameters() if p.ndim >= 2]
    figure = new_figure(8.2, 2.3)
    axes = figure.subplots(1, len(weights))
    for axis, (name, parameter) in zip(axes, weights, strict=True):
        rows, columns = parameter.shape[:2]
        image = np.ones((rows, columns, 3))
        for group, colour in zip(network.groups, _COLOURS, strict=False):
            for member in group.members:
                if member.path == name and member.dim < 2:
                    paint = image if member.dim == 0 else image.swapaxes(0, 1)
                    # The first unit is darker: one unit is these rows and columns, all at once.
                    for unit, positions in enumerate(member.indices):
                        strength = 0.95 if unit == 0 else 0.35
                        paint[positions] *= 1 - strength * (1 - np.array(to_rgb(colour)))
        axis.imshow(image, interpolation="nearest", aspect="auto")
        axis.set_title(name.removesuffix(".weight"), fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(f"{columns} in", fontsize=8)
        axis.set_ylabel(f"{rows} out", fontsize=8)
        for spine in axis.spines.values():
            spine.set(visible=True, color=GREY)
    names = [
        f"{group.name}: {group.size} units"
        for group, _ in zip(network.groups, _COLOURS, strict=False)
    ]
    figure.suptitle("    ".join(names), fontsize=9)
    return figure


if __name__ == "__main__":
    print(save(draw(), "units"))
