"""Devices that do not exist: latencies that follow known rooflines, for tests of what fits them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from autoprune.latency.kernels import FAMILIES, KernelTable, from_layers
from autoprune.latency.roofline import Roofline, RooflinePredictor
from autoprune.latency.samples import COLUMNS, Measurement, Origin, Samples, Shapes

ORIGIN = Origin("a/b", "t.md", "tensorrt", "tensorrt", "1", "MIT")
SLOW = Origin("c/d", "t.md", "tensorrt", "tensorrt", "2", "MIT")
TRUTH = {family: Roofline(0.02, 400.0, 15.0, 8) for family in FAMILIES} | {
    "dwconv": Roofline(0.03, 200.0, 10.0, 8),
    "linear": Roofline(0.02, 300.0, 20.0, 8),
}
CONSTANTS = {ORIGIN: 0.2, SLOW: 1.0}

_NOTHING = np.zeros((1, 0), int), np.zeros((1, 0), bool)


def random_layers(rng: np.random.Generator) -> list[list[Any]]:
    """Return the layer list of a random network of separable and plain blocks."""
    rows: list[list[Any]] = [["conv", 3, 32, 3, 2, 1, 224, 224, 112, 112]]
    channels, size = 32, 112
    for _ in range(rng.integers(4, 16)):
        out = int(8 * rng.integers(4, 65))
        if size > 7 and rng.random() < 0.4:
            rows.append(["maxpool", channels, channels, 2, 2, 1, size, size, size // 2, size // 2])
            size //= 2
        if rng.random() < 0.4:
            rows.append(["dwconv", channels, channels, 3, 1, channels, size, size, size, size])
        kernel = 3 if rng.random() < 0.5 else 1
        rows.append(["conv", channels, out, kernel, 1, 1, size, size, size, size])
        channels = out
    rows.append(["globalpool", channels, channels, size, 1, 1, size, size, 1, 1])
    for features in (1000, 4096)[: rng.integers(1, 3)]:
        rows.append(["fc", channels, features, 1, 1, 1, 1, 1, 1, 1])
        channels = features
    return rows


def network_ms(
    table: KernelTable,
    rooflines: Mapping[str, Roofline],
    constant_ms: float,
    overlap: Literal["none", "full"] = "none",
) -> float:
    """Return the milliseconds that the predictor gives for a network, two bytes per element."""
    predictor = RooflinePredictor(
        table, rooflines, bytes_per_element=2, overlap=overlap, constant_ms=constant_ms
    )
    return float(predictor.predict(*_NOTHING)[0])


def measured_networks(
    count: int = 20,
    *,
    overlap: Literal["none", "full"] = "none",
    noise: float = 0.0,
    seed: int = 0,
) -> list[Measurement]:
    """Return random networks measured on the device :data:`TRUTH`; every fourth is a slow origin.

    Args:
        count: Number of networks.
        overlap: Whether the device computes and moves data at once.
        noise: Standard deviation of the measurements in log space.
        seed: Of networks and noise.
    """
    rng = np.random.default_rng(seed)
    measurements = []
    for i in range(count):
        table = from_layers(random_layers(rng), "tensorrt")
        origin = SLOW if i % 4 == 3 else ORIGIN
        latency = network_ms(table, TRUTH, CONSTANTS[origin], overlap)
        latency *= float(np.exp(noise * rng.standard_normal()))
        measurements.append(Measurement(f"net{i}", origin, latency, table))
    return measurements


def kernel_grid(
    couts: Sequence[int] = (8, 16, 24, 32, 48, 64, 96, 128),
    cins: Sequence[int] = (16, 32, 64, 128),
    family: Literal["conv", "linear"] = "conv",
) -> Shapes:
    """Return 3 x 3 convolutions, or matrix products, of all channels at three sizes."""
    rows = []
    for cout in couts:
        for cin in cins:
            for outputs in (49, 196, 784):
                taps = 1 if family == "linear" else 9
                factors = (taps * outputs, taps, outputs, outputs)
                rows.append((cin, cout, 1, *factors, taps, 1, outputs, outputs, 1))
    index = np.full(len(rows), FAMILIES.index(family), np.intp)
    return Shapes(index, np.array(rows, float).reshape(-1, len(COLUMNS)))


def measured_kernels(
    shapes: Shapes | None = None,
    *,
    factor: Callable[[Shapes], Float[np.ndarray, " kernels"]] | None = None,
    noise: float = 0.0,
    rooflines: Mapping[str, Roofline] = TRUTH,
) -> Samples:
    """Return single kernels whose latency is that of rooflines, two bytes per element.

    Args:
        shapes: The kernels; by default those of :func:`kernel_grid`.
        factor: By what the device differs from its rooflines.
        noise: Standard deviation of the measurements in log space.
        rooflines: The device.
    """
    shapes = kernel_grid() if shapes is None else shapes
    limits = [rooflines[FAMILIES[i]] for i in shapes.family]
    paddings = np.array([rooflines[family].paddings for family in FAMILIES], float)
    macs, moved = shapes.work(paddings, 2)
    latency = (
        np.array([limit.overhead_ms for limit in limits])
        + macs * 1e-6 / np.array([limit.peak_gmacs_per_s for limit in limits])
        + moved * 1e-6 / np.array([limit.bandwidth_gb_s for limit in limits])
    )
    if factor is not None:
        latency = latency * factor(shapes)
    count = len(shapes)
    latency = latency * np.exp(noise * np.random.default_rng(0).standard_normal(count))
    return Samples(
        shapes,
        np.arange(count),
        latency,
        np.zeros(count, np.intp),
        (ORIGIN,),
        np.zeros(count, bool),
        tuple(f"row {i}" for i in range(count)),
        tuple(int(cout) for cout in shapes["cout"]),
    )
