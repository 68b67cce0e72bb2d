"""Damage curves: what each group's units are worth, from one pass of unlabelled images."""

from __future__ import annotations

import numpy as np
from drawing import BLUE, GREY, ORANGE, new_figure, save
from matplotlib.figure import Figure

from autoprune.network.source import ModelSource
from autoprune.network.trace import trace
from autoprune.pruning.merge import Calibrated
from autoprune.tasks.load import load_task

_NAMED = {"conv1": ORANGE, "layer1.0.conv1": BLUE}


def draw() -> Figure:
    """Return the damage curves of the digits' ResNet-20, structured OBS."""
    task = load_task("digits")
    network = trace(ModelSource.parse("digits").build(), task.example_inputs())
    calibrated = Calibrated.of(network, task.calibration(128))
    figure = new_figure(8.2, 2.8)
    axis = figure.subplots()
    for group in network.groups:
        elimination = calibrated.elimination(group)
        if elimination is None:
            continue
        gone = np.arange(len(elimination.damage)) / group.size
        colour = _NAMED.get(group.name, GREY)
        axis.plot(
            gone,
            elimination.damage,
            color=colour,
            alpha=1.0 if group.name in _NAMED else 0.35,
            linewidth=2.0 if group.name in _NAMED else 1.0,
            label=group.name if group.name in _NAMED else None,
        )
    axis.set_yscale("symlog", linthresh=1e-2)
    axis.set_ylim(0)
    axis.set_xlabel("share of the group's units that are gone")
    axis.set_ylabel("damage: relative error of\nwhat its readers compute")
    axis.legend(title="groups (the others in grey)")
    return figure


if __name__ == "__main__":
    print(save(draw(), "damage"))
