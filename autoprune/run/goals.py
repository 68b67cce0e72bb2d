"""What a search minimises and keeps to, from the words of settings to measures of candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.errors import AutopruneError, ProfileError, SettingsError, UnknownNameError
from autoprune.latency.memory import MemoryModel
from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import DeviceProfile, load_profile
from autoprune.network.ops import OpTable
from autoprune.strategy.expansion import space_latency
from autoprune.strategy.goals import COUNTED, LATENCY, Cost, Limit, Measure
from autoprune.strategy.space import SearchSpace

#: What is measured by evaluating networks; as an objective it comes first.
ACCURACY = "accuracy"

#: Costs that depend on a device.
_ON_DEVICES = (LATENCY, "energy")

#: Bytes of a megabyte.
_MB = 1e6

#: What a number may end in.
_SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def objective_names(value: Any) -> Any:
    """Return ``"accuracy,latency"`` as a tuple of names; other values as they are."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(","))
    return value


def counted(value: Any) -> Any:
    """Return a number that may be written as ``1.5M``; other values as they are.

    >>> counted("1.5M"), counted("300k"), counted(7), counted("many")
    (1500000, 300000, 7, 'many')
    """
    if not isinstance(value, str):
        return value
    text = value.strip().lower().replace(",", "").replace("_", "")
    factor = _SUFFIXES.get(text[-1:], 1.0)
    try:
        number = float(text.rstrip("kmgt")) * factor
    except ValueError:
        return value
    return int(number) if number == int(number) else number


def limits_by_device(values: Iterable[str]) -> dict[str, float]:
    """Return ``MS@DEVICE`` texts as milliseconds by device.

    >>> limits_by_device(["30@raspberry_pi_4"])
    {'raspberry_pi_4': 30.0}

    Raises:
        SettingsError: A text is of another form, or a device comes twice.
    """
    found: dict[str, float] = {}
    for text in values:
        milliseconds, at, device = text.partition("@")
        try:
            number = float(milliseconds)
        except ValueError:
            number, at = 0.0, ""
        if not at or not device or device in found:
            raise SettingsError(
                f"max_latency_ms: expected MS@DEVICE, each device once, got {text!r}; "
                "for example 30@raspberry_pi_4"
            )
        found[device] = number
    return found


def objective_fault(names: Sequence[str], device: object) -> AutopruneError | None:
    """Return what is wrong with the objectives, ``None`` if nothing is.

    Args:
        names: Names as they came.
        device: Name or path of the device profile; whatever is wrong with it is said elsewhere.
    """
    known = ", ".join((ACCURACY, LATENCY, f"{LATENCY}@DEVICE", *COUNTED, "energy", "energy@DEVICE"))
    if len(names) < 2 or names[0] != ACCURACY or len(set(names)) < len(names):
        return SettingsError(
            f"objective: expected {ACCURACY} first and then one or more costs, each once, got "
            f"{', '.join(names) or 'nothing'}; known: {known}"
        )
    for name in names[1:]:
        kind, at, other = name.partition("@")
        if (kind not in (*_ON_DEVICES, *COUNTED)) or (at and kind not in _ON_DEVICES):
            return UnknownNameError("objective", name, known.split(", "))
        try:
            place = other if at else device
            profile = load_profile(place) if isinstance(place, str) else None
            if kind == "energy" and profile is not None:
                _watts(profile)
        except AutopruneError as error:
            if at or kind == "energy":
                return error
    return None


def other_profiles(
    objective: Sequence[str], max_latency_ms: Mapping[str, float], device: DeviceProfile
) -> dict[str, DeviceProfile]:
    """Return the profiles of devices that are named beside the one the search is for.

    Args:
        objective: Names of the objectives.
        max_latency_ms: Limits by device.
        device: The profile that the search is for.

    Raises:
        AutopruneError: There is no such profile.
    """
    named = [name.partition("@")[2] for name in objective if "@" in name]
    return {name: load_profile(name) for name in dict.fromkeys((*named, *max_latency_ms))}


@dataclasses.dataclass(frozen=True)
class Measures:
    """Makes costs of a network's candidates from their names.

    Attributes:
        space: The search space.
        ops: The network's operators, of its own groups.
        profile: The device the search is for.
        latency: Its latency, of the space's dimensions.
        others: Profiles of other devices by the name that they were given by.
        say: Hears where predictions go beyond what was measured.
    """

    space: SearchSpace
    ops: OpTable
    profile: DeviceProfile
    latency: Measure
    others: Mapping[str, DeviceProfile]
    say: Callable[[str], None]

    def objectives(self, names: Sequence[str]) -> tuple[Cost, ...]:
        """Return the costs among the objectives; empty for the latency alone."""
        wanted = dict.fromkeys(self._here(name) for name in names if name != ACCURACY)
        return () if list(wanted) == [LATENCY] else tuple(map(self.cost, wanted))

    def limits(
        self, most: Mapping[str, int | float | None], max_latency_ms: Mapping[str, float]
    ) -> tuple[Limit, ...]:
        """Return the limits that are set.

        Args:
            most: By name of the cost; ``None`` for no limit.
            max_latency_ms: By device.
        """
        named = dict(most) | {f"{LATENCY}@{name}": ms for name, ms in max_latency_ms.items()}
        return tuple(
            Limit(self.cost(name), float(value))
            for name, value in named.items()
            if value is not None
        )

    def cost(self, name: str) -> Cost:
        """Return the cost of that name.

        Raises:
            ProfileError: It needs something that a device profile does not say.
        """
        name = self._here(name)
        kind, at, device = name.partition("@")
        if kind == "memory":
            model = MemoryModel(self.ops, bytes_per_element=self.profile.bytes_per_element)

            def measure(
                widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
            ) -> Float[np.ndarray, " n"]:
                return model.footprint(widths, keep).total / _MB

        elif kind in COUNTED:
            count = self.ops.macs if kind == "macs" else self.ops.params

            def measure(
                widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
            ) -> Float[np.ndarray, " n"]:
                return count(widths, keep).astype(float)

        else:
            return Cost(name, self._on_device(kind, self.others[device] if at else self.profile))
        return Cost(name, space_latency(self.space, measure))

    def _here(self, name: str) -> str:
        """Return the name without the device where that is the one the search is for."""
        kind, _, device = name.partition("@")
        return kind if device and self.others[device] == self.profile else name

    def _on_device(self, kind: str, profile: DeviceProfile) -> Measure:
        latency = self.latency
        if profile != self.profile:
            predictor = predictor_for(self.ops, profile)
            for note in predictor.notes:
                self.say(note)
            latency = space_latency(self.space, predictor.predict)
        if kind == LATENCY:
            return latency
        watts = _watts(profile)

        def energy(
            widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
        ) -> Float[np.ndarray, " n"]:
            return watts * latency(widths, keep)

        return energy


def _watts(profile: DeviceProfile) -> float:
    """Return the power that a device draws, in W, so that times ms it is mJ.

    Raises:
        ProfileError: Nobody has measured it.
    """
    if profile.power is None:
        raise ProfileError(
            f"energy: the device profile {profile.name!r} states no measured power, so energy is "
            "not predicted; measure what the device draws while networks run and add `power: "
            "{watts: ..., source: ...}` to a copy of the profile, or take latency as objective"
        )
    return profile.power.watts
