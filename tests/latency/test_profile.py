import itertools

import numpy as np
import pytest
import yaml

from autoprune.errors import ProfileError, UnknownNameError
from autoprune.latency.kernels import FAMILIES, from_layers, fuse
from autoprune.latency.layers import ops_from_rows
from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import (
    Attachment,
    Families,
    checked_profile,
    load_profile,
    profile_names,
    save_profile,
)
from autoprune.latency.samples import EXACT, shapes_of
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
        "predictor.roofline.families.conv:",
        "predictor.roofline.families.pool.overhead_ms:",
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
    with pytest.raises(UnknownNameError, match=r"Known: \w+, "):
        load_profile(name)


def test_near_name_is_offered():
    with pytest.raises(UnknownNameError, match="did you mean 'jetson_nano'"):
        load_profile("jetson_nanp")


def test_alias_is_the_same_profile():
    assert load_profile("jetson") == load_profile("jetson_nano")


def learned(text="trees"):
    """Plain data of a profile with one attachment."""
    bounds = {"cin": 1.0}
    model = Attachment.of("made_up.conv.lgb.txt", text).model_dump() | {
        "low": bounds,
        "high": bounds,
    }
    predictor = made_up_profile().predictor.model_dump(by_alias=True)
    return content(predictor=predictor | {"kind": "learned", "models": {"conv": model}})


def test_attachments_lie_beside_the_profile(tmp_path):
    path = tmp_path / "made_up.yaml"
    profile = checked_profile(learned(), "somewhere")
    save_profile(profile, path)
    assert (tmp_path / "made_up.conv.lgb.txt").read_text() == "trees"
    assert "trees" not in path.read_text()
    assert load_profile(path) == profile


def test_changed_or_missing_attachment_is_refused(tmp_path):
    path = tmp_path / "made_up.yaml"
    save_profile(checked_profile(learned(), "somewhere"), path)
    beside = tmp_path / "made_up.conv.lgb.txt"
    beside.write_text("other trees")
    with pytest.raises(ProfileError, match="is not the file the profile was written with"):
        load_profile(path)
    beside.unlink()
    with pytest.raises(ProfileError, match="keep the files of a profile together"):
        load_profile(path)


@pytest.mark.parametrize("name", ["../trees.txt", "/etc/passwd", "a\\b", ""])
def test_attachment_outside_the_folder_is_refused(name):
    bad = learned()
    bad["predictor"]["models"]["conv"]["file"] = name
    with pytest.raises(ProfileError, match="must be the name of a file beside the profile"):
        checked_profile(bad, "somewhere")


def test_unread_attachment_says_how_to_read_it():
    bad = learned()
    del bad["predictor"]["models"]["conv"]["text"]
    profile = checked_profile(bad, "somewhere")
    with pytest.raises(ProfileError, match="load_profile"):
        profile.predictor.attachments[0].content()


def test_trees_of_other_features_are_refused():
    bad = learned()
    bad["predictor"]["features"] = 2
    with pytest.raises(ProfileError, match=r"predictor\.learned\.features"):
        checked_profile(bad, "somewhere")


@pytest.mark.parametrize(
    ("mape", "samples", "count", "word"),
    [
        (0.05, "networks", 50, "strong"),
        (0.05, "networks", 49, "moderate"),
        (0.051, "networks", 500, "moderate"),
        (0.05, "kernels", 200, "strong"),
        (0.05, "kernels", 199, "moderate"),
        (0.12, "networks", 8, "moderate"),
        (0.121, "kernels", 5000, "coarse"),
    ],
)
def test_quality_follows_its_rule(mape, samples, count, word):
    held_out = made_up_profile().provenance.held_out.model_dump() | {"mape": mape}
    changes = {"held_out": held_out, "samples": samples, "sample_count": count}
    profile = made_up_profile(provenance=made_up_profile().provenance.model_dump() | changes)
    assert profile.quality == word


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
    told = ("leave-one-", "folds of whole", "that nothing was fitted on")
    assert any(words in provenance.split for words in told)
    if provenance.predictions:
        count = sum(source.measurements for source in provenance.sources)
        apart = "nothing was fitted on" in provenance.split
        judged = provenance.sample_count if apart else len(provenance.predictions)
        assert count == judged + provenance.kernel_count
        errors = [abs(p.predicted_ms / p.measured_ms - 1) for p in provenance.predictions]
        assert np.mean(errors) == pytest.approx(provenance.held_out.mape, rel=1e-3)
        within = np.mean(np.array(errors) <= 0.1)
        assert within == pytest.approx(provenance.held_out.within_10, abs=1e-4)
    else:
        assert provenance.samples == "kernels" or provenance.sample_count > 100
    if "conv" not in provenance.measured_families:
        return
    none = np.zeros((1, 0), int), np.zeros((1, 0), bool)
    sizes = (8, 32, 64, 128, 256, 512)
    times = [predictor_for(stack(size), profile).predict(*none)[0] for size in sizes]
    # What boosted trees add is no smoother than the error that they state.
    rough = 0.0 if profile.predictor.kind == "roofline" else 2 * provenance.held_out.mape
    assert all(after >= before * (1 - rough) for before, after in itertools.pairwise(times))
    assert times[-1] > 1.2 * times[0]
    # A runtime with fast algorithms for 3x3 convolutions computes fewer than the network has.
    shapes = shapes_of(fuse(stack(512), profile.runtime))
    computed = shapes.work(EXACT, 1)[0].sum()
    fastest_gmacs_per_s = computed * 1e-6 / times[-1]
    assert fastest_gmacs_per_s * (1 - rough) < profile.predictor.families.conv.peak_gmacs_per_s


def test_faster_boards_are_faster():
    none = np.zeros((1, 0), int), np.zeros((1, 0), bool)
    order = ["jetson_nano", "jetson_tx2", "jetson_nx", "jetson_agx_xavier", "jetson_agx_orin"]
    times = [predictor_for(stack(256), load_profile(n)).predict(*none)[0] for n in order]
    assert times == sorted(times, reverse=True)


def test_affine_dimensions_are_kept_in_kernels():
    assert from_layers([["fc", 4, 2, 1, 1, 1, 1, 1, 1, 1]], "eager").kernels[0].cin == Affine(4)
