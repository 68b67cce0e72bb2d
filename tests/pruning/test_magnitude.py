from __future__ import annotations

import numpy as np
import pytest

from autoprune.errors import UnknownNameError
from autoprune.pruning.importance.l1 import L1
from autoprune.pruning.importance.l2 import L2
from autoprune.pruning.magnitude import or_magnitude
from autoprune.testing.networks import tiny


def test_a_reason_is_replaced_by_the_magnitude_and_noted():
    network = tiny("chain").network
    given = np.arange(8.0)
    scores, notes = or_magnitude(network, {"conv1": given, "conv2": "it is too warm"})
    assert scores["conv1"] is given
    np.testing.assert_array_equal(scores["conv2"], L2().score(network)["conv2"])
    assert notes == {"conv2": "it is too warm; scored by L2 magnitude"}


def test_sites_are_reduced_as_asked():
    network = tiny("residual").network
    total = L1(normaliser="none", reduce="sum").score(network)["stem"]
    mean = L1(normaliser="none").score(network)["stem"]
    np.testing.assert_allclose(total, 6 * mean)  # six weights write or read the stream
    with pytest.raises(UnknownNameError, match="reducer named 'median'"):
        L1(reduce="median")
