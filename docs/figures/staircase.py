"""Predicted latency as one group of a network narrows: a staircase, not a line."""

from __future__ import annotations

import numpy as np
from drawing import BLUE, GREY, ORANGE, new_figure, save
from matplotlib.figure import Figure

from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import load_profile
from autoprune.network.resnet import digits_resnet20
from autoprune.network.trace import trace
from autoprune.tasks.load import load_task

_GROUP = "layer3.0.conv2"


def draw() -> Figure:
    """Return latency and MACs over the width of one group of the digits' ResNet-20."""
    model = digits_resnet20().eval()
    network = trace(model, load_task("digits", batch=1).example_inputs())
    place = [group.name for group in network.groups].index(_GROUP)
    full = network.groups[place].size
    kept = np.arange(1, full + 1)
    widths = np.tile([group.size for group in network.groups], (full, 1))
    widths[:, place] = kept
    keep = np.ones((full, len(network.blocks)), bool)
    macs = network.ops.macs(widths, keep).astype(float)
    figure = new_figure(8.2, 2.8)
    axes = figure.subplots(1, 2, sharey=True)
    boards = {
        "jetson_nano": "Jetson Nano, TensorRT fp16",
        "raspberry_pi_4_ncnn": "Raspberry Pi 4, ncnn",
    }
    for axis, (name, words) in zip(axes, boards.items(), strict=True):
        ms = predictor_for(network.ops, load_profile(name)).predict(widths, keep)
        axis.plot(kept, ms / ms[-1], color=BLUE, drawstyle="steps-mid", label="predicted latency")
        axis.plot(kept, macs / macs[-1], color=ORANGE, linestyle="--", label="MACs")
        axis.set_title(words)
        axis.set_xlabel(f"units kept of {_GROUP}")
        axis.grid(color=GREY, alpha=0.2)
    axes[0].set_ylabel("share of the whole network's")
    axes[0].legend()
    return figure


if __name__ == "__main__":
    print(save(draw(), "staircase"))
