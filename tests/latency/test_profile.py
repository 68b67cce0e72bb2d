import numpy as np
import pytest
import yaml

from autoprune.errors import ProfileError, UnknownNameError
from autoprune.latency.kernels import FAMILIES, from_layers
from autoprune.latency.layers import ops_from_rows
from autoprune.latency.profile import (
    Families,
    checked_profile,
    load_profile,
    profile_names,
    save_profile,
)
from autoprune.latency.roofline import predictor_for
from autoprune.network.ops import Affine
from autoprune.testing.profiles import made_up_profile


def content(**changes):
    return made_up_profile().model_dump(mode="json", by_alias=True) | changes


def test_profile_survives_a_round_trip(tmp_path):
    path = tmp_path / "made_up.yaml"
    profile = made_up_profile(aliases=("other",), capabilities=("int8",))
    save_profile(profile, path, comment="how\nit was made")
    assert path.read_text().startswith("# how\n# it was made\nversion: 1\n")
    assert load_profile(path) == profile


def test_every_fault_is_listed_at_once(tmp_path):
    path = tmp_path / "bad.yaml"
    bad = content(colour="red", batch=0, runtime="tensort", precision="fp12", version=2)
    bad["provenance"] = bad["provenance"] | {"sources": []}
    del bad["provenance"]["sample_count"], bad["provenance"]["held_out"]
    del bad["predictor"]["families"]["conv"]
    bad["predictor"]["families"]["pool"]["overhead_ms"] = -1
    path.write_text(yaml.safe_dump(bad))
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert str(path) in message
    for place in (
        "colour:",
        "batch:",
        "runtime:",
        "precision:",
        "version:",
        "provenance.sources:",
        "provenance.sample_count:",
        "provenance.held_out:",
        "predictor.families.conv:",
        "predictor.families.pool.overhead_ms:",
    ):
        assert f"\n  {place}" in message


@pytest.mark.parametrize("field", ["sources", "sample_count", "held_out", "date", "split"])
def test_profile_without_provenance_is_refused(field):
    bad = content()
    del bad["provenance"][field]
    with pytest.raises(ProfileError, match=f"provenance.{field}: Field required"):
        checked_profile(bad, "somewhere")


def test_source_without_licence_is_refused():
    bad = content()
    bad["provenance"]["sources"][0]["licence"] = " "
    with pytest.raises(ProfileError, match=r"sources\.0\.licence: .*must not be empty"):
        checked_profile(bad, "somewhere")


@pytest.mark.parametrize("text", ["- 1\n", "a: [1\n", "!!python/object:os.system {}\n"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "bad.yml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=r"bad\.yml"):
        load_profile(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ProfileError, match="cannot read"):
        load_profile(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["jetson_nan", "../hardware_profiles/jetson_nano", ""])
def test_unknown_name_is_no_path(name):
    with pytest.raises(UnknownNameError, match="Known: jetson"):
        load_profile(name)


def test_near_name_is_offered():
    with pytest.raises(UnknownNameError, match="did you mean 'jetson_nano'"):
        load_profile("jetson_nanp")


def test_alias_is_the_same_profile():
    assert load_profile("jetson") == load_profile("jetson_nano")


def test_error_is_shown_with_every_prediction():
    held_out = made_up_profile().provenance.held_out.model_dump() | {"mape": 0.118}
    provenance = made_up_profile().provenance.model_dump() | {"held_out": held_out}
    profile = made_up_profile(provenance=provenance)
    assert profile.error_text == "±12 %"
    assert profile.latency_text(9.4149) == "9.41 ms (±12 %)"
    assert profile.latency_text(0.012345) == "0.0123 ms (±12 %)"
    assert profile.latency_text(1234.5) == "1234 ms (±12 %)"


def test_families_are_those_of_the_kernels():
    names = {field.alias or name for name, field in Families.model_fields.items()}
    assert names == set(FAMILIES)
    families = made_up_profile().predictor.families
    dumped = families.model_dump(by_alias=True)
    assert {name: families.of(name).model_dump() for name in FAMILIES} == dumped


BOARDS = {
    "jetson_nano", "jetson_tx2", "jetson_nx", "jetson_agx_xavier", "jetson_orin_nano",
    "jetson_agx_orin",
}  # fmt: skip


def test_all_boards_are_shipped():
    assert set(profile_names()) >= BOARDS


def test_names_and_aliases_are_unique():
    profiles = [load_profile(name) for name in profile_names()]
    names = [name for profile in profiles for name in (profile.name, *profile.aliases)]
    assert len(names) == len(set(names))


def stack(size):
    """A chain of six convolutions whose channels are all ``size``."""
    chain = [["conv", size, size, 3, 1, 1, 28, 28, 28, 28] for _ in range(6)]
    return ops_from_rows(chain)


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profile_is_honest_and_sensible(name):
    profile = load_profile(name)
    provenance = profile.provenance
    assert profile.name == name
    assert provenance.sample_count >= 8
    assert "leave-one-network-out" in provenance.split
    assert sum(source.measurements for source in provenance.sources) == len(provenance.predictions)
    errors = [abs(p.predicted_ms / p.measured_ms - 1) for p in provenance.predictions]
    assert np.mean(errors) == pytest.approx(provenance.held_out.mape, rel=1e-3)
    within = np.mean(np.array(errors) <= 0.1)
    assert within == pytest.approx(provenance.held_out.within_10, abs=1e-4)
    none = np.zeros((1, 0), int), np.zeros((1, 0), bool)
    sizes = (8, 32, 64, 128, 256, 512)
    times = [predictor_for(stack(size), profile).predict(*none)[0] for size in sizes]
    assert times == sorted(times)
    assert times[-1] > 1.2 * times[0]
    fastest_gmacs_per_s = stack(512).macs()[0] * 1e-6 / times[-1]
    assert fastest_gmacs_per_s < profile.predictor.families.conv.peak_gmacs_per_s


def test_faster_boards_are_faster():
    none = np.zeros((1, 0), int), np.zeros((1, 0), bool)
    order = ["jetson_nano", "jetson_tx2", "jetson_nx", "jetson_agx_xavier", "jetson_agx_orin"]
    times = [predictor_for(stack(256), load_profile(n)).predict(*none)[0] for n in order]
    assert times == sorted(times, reverse=True)


def test_affine_dimensions_are_kept_in_kernels():
    assert from_layers([["fc", 4, 2, 1, 1, 1, 1, 1, 1, 1]], "eager").kernels[0].cin == Affine(4)
