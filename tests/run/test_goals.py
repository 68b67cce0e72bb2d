import numpy as np
import pytest

from autoprune.errors import ProfileError, SettingsError, UnknownNameError
from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import save_profile
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified
from autoprune.run.goals import Measures, limits_by_device, objective_fault, other_profiles
from autoprune.strategy.settings import load_space_settings
from autoprune.strategy.space import build_space
from autoprune.testing.networks import tiny
from autoprune.testing.profiles import made_up_profile

SLOW = made_up_profile(name="slow", precision="fp32", power={"watts": 2.5, "source": "a meter"})


@pytest.fixture(scope="module")
def network():
    known = tiny("residual")
    return verified(trace(known.model, known.inputs))


@pytest.fixture(scope="module")
def measures(network):
    here = made_up_profile()
    space = build_space(network.groups, network.blocks, load_space_settings("default"), alignment=1)
    latency = predictor_for(network.ops, here).predict
    return Measures(space, network.ops, here, latency, {"slow": SLOW, "board": here}, print)


@pytest.fixture(scope="module")
def rows(measures):
    rng = np.random.default_rng(0)
    ratios = rng.uniform(size=(6, len(measures.space.dimensions))) * 0.8
    return measures.space.realise(ratios, np.zeros((6, len(measures.space.blocks)), bool))


def test_counts_are_those_of_the_pruned_network(network, measures, rows):
    params = measures.cost("params").values(*rows)
    surgeon = Surgeon(network)
    for widths, expected in zip(rows[0], params.tolist(), strict=True):
        kept = {
            group.name: tuple(range(int(width)))
            for group, width in zip(network.groups, widths, strict=True)
            if width < group.size
        }
        pruned = surgeon.cut(surgeon.complete(PruningPlan(kept=kept, dropped=())))
        assert sum(p.numel() for p in pruned.parameters()) == expected
        # Half-precision weights are two bytes each, and activations come on top.
    memory = measures.cost("memory").values(*rows)
    assert (memory > 2 * params / 1e6).all()


def test_latencies_and_energies_are_those_of_their_devices(network, measures, rows):
    slow = predictor_for(network.ops, SLOW).predict(*rows)
    assert measures.cost("latency@slow").values(*rows).tolist() == slow.tolist()
    assert measures.cost("energy@slow").values(*rows) == pytest.approx(2.5 * slow)
    here = measures.cost("latency@board")
    assert here.name == "latency"
    assert (here.values(*rows) < slow).all()


def test_the_latency_alone_is_no_list_of_costs(measures):
    assert measures.objectives(("accuracy", "latency")) == ()
    assert measures.objectives(("accuracy", "latency@board", "latency")) == ()
    several = measures.objectives(("accuracy", "params", "latency@slow", "latency@board"))
    assert [cost.name for cost in several] == ["params", "latency@slow", "latency"]


def test_limits_are_those_that_are_set(measures):
    limits = measures.limits({"params": 500, "memory": None}, {"slow": 3.0})
    assert [str(limit) for limit in limits] == ["500 params", "3 ms latency@slow"]


def test_energy_without_measured_power_is_refused(measures):
    with pytest.raises(ProfileError, match="'made_up' states no measured power"):
        measures.cost("energy")


@pytest.mark.parametrize("text", ["30", "fast@board", "30@", "@board"])
def test_a_limit_by_device_is_a_number_and_a_device(text):
    with pytest.raises(SettingsError, match="expected MS@DEVICE"):
        limits_by_device([text])
    with pytest.raises(SettingsError, match="each device once"):
        limits_by_device(["1@board", "2@board"])


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (("latency",), SettingsError, "accuracy first"),
        (("accuracy",), SettingsError, "one or more costs"),
        (("accuracy", "macs", "macs"), SettingsError, "each once"),
        (("accuracy", "speed"), UnknownNameError, "no objective named 'speed'"),
        (("accuracy", "macs@board"), UnknownNameError, "no objective named 'macs@board'"),
        (("accuracy", "latency@bord"), UnknownNameError, "no device profile named 'bord'"),
    ],
)
def test_wrong_objectives_say_what_is_known(board, names, kind, message):
    fault = objective_fault(names, board)
    assert isinstance(fault, kind)
    assert message in str(fault)


def test_objectives_of_a_device_need_what_its_profile_says(board, tmp_path):
    assert objective_fault(("accuracy", "latency", "memory"), board) is None
    assert "no measured power" in str(objective_fault(("accuracy", "energy"), board))
    save_profile(SLOW, tmp_path / "slow.yaml")
    assert objective_fault(("accuracy", f"energy@{tmp_path / 'slow.yaml'}"), board) is None
    assert objective_fault(("accuracy", "energy"), str(tmp_path / "slow.yaml")) is None


def test_profiles_of_all_named_devices_are_read(board, tmp_path):
    save_profile(SLOW, tmp_path / "slow.yaml")
    path = str(tmp_path / "slow.yaml")
    found = other_profiles(("accuracy", f"latency@{path}"), {board: 3.0}, made_up_profile())
    assert {name: profile.name for name, profile in found.items()} == {
        path: "slow",
        board: "made_up",
    }
