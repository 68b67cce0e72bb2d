from __future__ import annotations

import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from autoprune.errors import ExportError
from autoprune.report.plot import PLOT_FORMATS, plot_front, write_plot


def test_the_plot_has_every_network_where_it_belongs(data):
    ax = plot_front(data, Figure().add_subplot())
    lines = {line.get_label(): line for line in ax.lines}

    front = next(box for box in ax.containers if "front" in box.get_label())
    assert front.lines[0].get_xydata().tolist() == [[4.0, 0.8], [8.0, 0.9], [12.0, 0.92]]
    (bars,) = front.lines[2]
    ends = np.array(bars.get_segments())[:, :, 0]
    assert np.allclose(ends, [[3.6, 4.4], [7.2, 8.8], [10.8, 13.2]])
    assert lines["unpruned network"].get_xydata().tolist() == [[16.0, 0.93]]
    assert lines["chosen"].get_xydata().tolist() == [[8.0, 0.9]]
    assert np.array(lines["uniform pruning"].get_xydata()).tolist() == [[8.5, 0.75], [2.5, 0.2]]
    assert lines["budget 10.0\xa0ms"].get_xdata() == [10.0, 10.0]
    (trials,) = ax.collections[:1]
    assert trials.get_offsets().tolist() == [[5.0, 0.7]]


@pytest.mark.parametrize("kind", PLOT_FORMATS)
def test_pictures_are_of_their_format_and_the_same_again(data, tmp_path, kind):
    begins = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[kind]
    for name in ("a", "b"):
        write_plot(data, tmp_path / f"{name}.{kind}")
    first, second = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("a", "b"))

    assert first.startswith(begins)
    assert first == second
    assert mpl.rcParams["svg.fonttype"] == "path"


def test_without_matplotlib_there_is_a_way_out(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ExportError, match=r"pip install 'autoprune\[plots\]'"):
        write_plot(data, tmp_path / "front.svg")
    assert not list(tmp_path.iterdir())
