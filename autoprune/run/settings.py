"""What a run was asked to do, validated whole before any work."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import pydantic

from autoprune.errors import AutopruneError, SettingsError, UnknownNameError
from autoprune.evaluation import Metric
from autoprune.execution.cluster import check_address, check_logger
from autoprune.execution.fidelity import rung_names
from autoprune.latency.profile import load_profile
from autoprune.pruning.criterion import CRITERIA
from autoprune.pruning.realiser import REALISERS
from autoprune.run.goals import ACCURACY, counted, objective_fault, objective_names
from autoprune.run.storage import checked_storage, masked
from autoprune.strategy.goals import LATENCY
from autoprune.strategy.registry import WARM_START_DAMAGE, check_sampler, wanted_damage
from autoprune.strategy.settings import load_space_settings
from autoprune.tasks.numerics import Precision

#: What a run may change when it goes on: limits, and where and how it is executed.
CHANGEABLE = (
    *("trials", "time_limit", "workers", "trial_time_limit", "max_failures"),
    *("ray", "cpus_per_trial", "gpus_per_trial", "storage", "ship_package", "loggers"),
)

#: Name of a study, unless another one is asked for.
STUDY_NAME = "autoprune"

_PositiveFloat = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
_PositiveInt = Annotated[int, pydantic.Field(ge=1)]
#: A whole number that may be written as ``1.5M``.
_Count = Annotated[int, pydantic.BeforeValidator(counted), pydantic.Field(ge=1)]


class RunSettings(pydantic.BaseModel):
    """Settings of one search, as written to ``run.json``.

    Attributes:
        model: One line that names the model: ``digits``, ``torchvision:NAME``, ``timm:NAME``,
            ``hf:FOLDER``, ``package.module:factory`` or ``file.py:factory``; ``None`` where it was
            given as an object in Python.
        weights: File with its weights.
        data: One line that names the task: ``digits``, ``cifar10:DIR``, ``image-folder:DIR``,
            ``text:FILE?tokenizer=FOLDER``, ``package.module:factory`` or ``file.py:factory``;
            ``None`` where it was given as an object in Python.
        device: Name or path of the device profile.
        budget_ms: Latency no candidate may exceed, for one batch; ``None`` for no limit.
        objective: ``"accuracy"`` and then the costs that the front is sought of: ``"latency"``,
            ``"latency@DEVICE"``, ``"macs"``, ``"params"``, ``"memory"``, ``"energy"`` or
            ``"energy@DEVICE"``; also as one text with commas.
        max_params: Parameters that no candidate may exceed; ``"1.5M"`` is a million and a half.
        max_macs: Multiply-accumulates of one batch that no candidate may exceed.
        max_memory_mb: Megabytes of weights and largest activations that none may exceed.
        max_latency_ms: Milliseconds that no candidate may exceed on other devices, by their names.
        min_accuracy: Fraction right on the search split that a network must reach to be on the
            front. Without a budget, the fastest such network is the best.
        batch: Samples per deployment batch; ``None`` is the task's own.
        trials: Evaluations, the unpruned network not counted.
        time_limit: No evaluation starts after this many seconds of one session.
        trial_time_limit: An evaluation that takes more seconds has failed; ``None`` for no limit.
        sampler: Name of the search strategy, or the path of another: ``package.module:Class``,
            ``file.py:factory``, ``optunahub:PACKAGE``.
        sampler_options: Options of the search strategy by name.
        warm_start: How many candidates of least expected damage are evaluated first.
        criterion: Name of the importance criterion that ranks the units of a group; ``None`` is
            that of the damage, or ``"l2"`` without one.
        damage: Name of the criterion whose scores, added up, tell a sampler the expected damage of
            a candidate; ``None`` is the one that the sampler wants, if any.
        realise: Name of the way in which a plan becomes a network.
        space: Name or path of the search space.
        seed: Of all random numbers: of the sampler, of random weights and of checks.
        workers: Evaluations side by side; ``None`` is one per physical core.
        executor: ``"ray"`` for worker processes, ``"inline"`` for one after the other in this one.
        ray: The Ray that is worked on: ``local``, ``local:N``, ``auto`` or ``ray://HOST:PORT``;
            ``None`` is the one that ``RAY_ADDRESS`` names, or a local one.
        cpus_per_trial: CPUs, and threads, of one evaluation.
        gpus_per_trial: GPUs of one evaluation; a fraction shares one.
        storage: Folder or address where Ray Tune's files are kept; ``None`` removes them.
        max_failures: How often an evaluation is begun again whose worker died.
        ship_package: Whether workers get autoprune, and the packages of model and data, from here.
        loggers: Where trials are logged too: ``tensorboard``, ``mlflow``, ``wandb``.
        metric: What is minimised beside latency: ``"loss"``, ``"calibrated"`` for the loss at the
            temperature that suits a network best, or ``"kl"`` for the divergence from the unpruned
            network's answers, which needs no labels. ``"auto"`` is ``"calibrated"`` for the
            classification of images and ``"loss"`` for all else; a run writes down which.
        racing: Whether scoring ends early where a network as fast is clearly better.
        rungs: How far the most promising networks are trained after the search, see
            :func:`~autoprune.execution.fidelity.rung_steps`; also as one text with commas.
        precision: Number format of evaluations on the search split; ``"auto"`` is bfloat16 where
            the processor computes in it and the network runs in it. A run writes down which.
        study_storage: Where the study lies that several drivers work on: ``sqlite:///FILE``,
            ``postgresql://...``, ``redis://...`` or ``journal:FILE``; ``None`` is the run
            directory. Its password is left out wherever settings are dumped.
        study_name: Name of the study in that storage.
        cache: Folder where scores are kept for other runs; ``None`` for none.
        calibration_samples: Training samples that scores and realisations come from.
        search_samples: Most search samples an evaluation uses; ``None`` is the task's own.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    model: str | None = "digits"
    weights: str | None = None
    data: str | None = "digits"
    device: str
    budget_ms: _PositiveFloat | None = None
    objective: Annotated[tuple[str, ...], pydantic.BeforeValidator(objective_names)] = (
        ACCURACY,
        LATENCY,
    )
    max_params: _Count | None = None
    max_macs: _Count | None = None
    max_memory_mb: _PositiveFloat | None = None
    max_latency_ms: dict[str, _PositiveFloat] = {}
    min_accuracy: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    batch: _PositiveInt | None = None
    trials: _PositiveInt = 50
    time_limit: _PositiveFloat | None = None
    trial_time_limit: _PositiveFloat | None = None
    sampler: str = "knapsack"
    sampler_options: dict[str, bool | int | float | str | None] = {}
    warm_start: Annotated[int, pydantic.Field(ge=0)] = 0
    criterion: str | None = None
    damage: str | None = None
    realise: str = "reconstruct"
    space: str = "default"
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    workers: _PositiveInt | None = None
    executor: Literal["ray", "inline"] = "ray"
    ray: str | None = None
    cpus_per_trial: _PositiveFloat = 1.0
    gpus_per_trial: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] = 0.0
    storage: str | None = None
    max_failures: Annotated[int, pydantic.Field(ge=0)] = 1
    ship_package: bool = False
    loggers: tuple[str, ...] = ()
    metric: Metric | Literal["auto"] = "auto"
    racing: bool = True
    rungs: Annotated[tuple[str, ...], pydantic.BeforeValidator(rung_names)] = ()
    precision: Precision = "auto"
    study_storage: Annotated[str | None, pydantic.Field(repr=False)] = None
    study_name: Annotated[str, pydantic.Field(min_length=1)] = STUDY_NAME
    cache: str | None = None
    calibration_samples: Annotated[int, pydantic.Field(ge=2)] = 256
    search_samples: _PositiveInt | None = None

    @pydantic.model_validator(mode="after")
    def _alone_with_rungs(self) -> RunSettings:
        if self.rungs and self.study_storage is not None:
            raise ValueError(
                "rungs: networks are promoted by one driver; leave study_storage out, or the rungs"
            )
        return self

    @pydantic.field_serializer("study_storage")
    def _without_password(self, storage: str | None) -> str | None:
        return None if storage is None else masked(storage)

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> RunSettings:
        """Return the settings, every one of them valid and every name known.

        Args:
            values: Settings by name; what is left out takes its default.

        Raises:
            UnknownNameError: One name is unknown, and nothing else is wrong.
            SettingsError: Something is wrong; the message lists all of it.
        """
        faults = _wrong_names(values) + _wrong_ray(values)
        try:
            settings = cls.model_validate(dict(values))
        except pydantic.ValidationError as error:
            faults += [SettingsError(_fault(entry)) for entry in error.errors(include_url=False)]
        if len(faults) == 1:
            raise faults[0]
        if faults:
            listed = "\n".join(f"  {fault}" for fault in faults)
            raise SettingsError(f"{len(faults)} settings are wrong:\n{listed}")
        damage = settings.damage or wanted_damage(settings.sampler)
        if damage is None and settings.warm_start:
            damage = WARM_START_DAMAGE
        criterion = settings.criterion or damage or "l2"
        return settings.model_copy(update={"damage": damage, "criterion": criterion})

    def with_limits(self, limits: Mapping[str, Any]) -> RunSettings:
        """Return the settings with new limits, the only ones a run may change when it goes on.

        Args:
            limits: Of :data:`CHANGEABLE`.

        Raises:
            SettingsError: Another setting came, or a value is wrong.
        """
        others = sorted(set(limits) - set(CHANGEABLE))
        if others:
            raise SettingsError(
                f"a run goes on with its own settings; only trials, time_limit and workers may "
                f"change, and what Ray is asked for, not {', '.join(others)}. "
                "Start a new run for that"
            )
        try:
            # Not from a dump, which lacks the password of the study's storage.
            settings = type(self).model_validate(dict(self) | dict(limits))
        except pydantic.ValidationError as error:
            raise SettingsError(
                "; ".join(_fault(entry) for entry in error.errors(include_url=False))
            ) from None
        for fault in _wrong_ray(dict(settings)):
            raise fault
        return settings


def _wrong_names(values: Mapping[str, Any]) -> list[AutopruneError]:
    """Return one error for each name that is looked up and not found."""
    lookups: dict[str, Callable[[str], object]] = {
        "device": load_profile,
        "sampler": functools.partial(check_sampler, options=values.get("sampler_options") or {}),
        "criterion": CRITERIA.__getitem__,
        "damage": _comparable,
        "realise": REALISERS.__getitem__,
        "space": load_space_settings,
        "study_storage": checked_storage,
    }
    faults: list[AutopruneError] = []
    for setting, look_up in lookups.items():
        value = values.get(setting, RunSettings.model_fields[setting].default)
        if isinstance(value, str):
            try:
                look_up(value)
            except AutopruneError as error:
                faults.append(error)
    return faults + _wrong_goals(values)


def _wrong_goals(values: Mapping[str, Any]) -> list[AutopruneError]:
    """Return what is wrong with objectives, and devices of limits that are not found."""
    faults: list[AutopruneError] = []
    names = objective_names(values.get("objective", (ACCURACY, LATENCY)))
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        fault = objective_fault(names, values.get("device"))
        faults += [] if fault is None else [fault]
    most = values.get("max_latency_ms")
    for device in most if isinstance(most, Mapping) else ():
        try:
            load_profile(device)
        except AutopruneError as error:
            faults.append(error)
    return faults


def _wrong_ray(values: Mapping[str, Any]) -> list[AutopruneError]:
    """Return what is wrong with what Ray is asked for, or that it is not to be used."""
    faults: list[AutopruneError] = []
    for name, look_up in (("ray", check_address), ("loggers", check_logger)):
        value = values.get(name) or ()
        for text in value if isinstance(value, list | tuple) else [value]:
            try:
                look_up(str(text))
            except AutopruneError as error:
                faults.append(error)
    asked = [
        name
        for name in ("ray", "gpus_per_trial", "storage", "ship_package", "loggers")
        if values.get(name)
    ]
    if values.get("executor") == "inline" and asked:
        faults.append(
            SettingsError(
                f"executor: 'inline' evaluates in this process, without {', '.join(asked)}; leave "
                "that out, or take the executor 'ray'"
            )
        )
    return faults


def _comparable(name: str) -> None:
    """Raise unless ``name`` is a criterion whose scores compare across groups."""
    if not getattr(CRITERIA[name], "comparable", False):
        known = [each for each in CRITERIA.names() if getattr(CRITERIA[each], "comparable", False)]
        raise SettingsError(
            f"damage: scores of the criterion {name!r} do not compare across groups; "
            f"take one of {', '.join(known)}"
        )


def _fault(entry: Any) -> str:  # pydantic_core.ErrorDetails, which its stubs make a TypedDict
    """Return one line: which setting, what was expected, what came."""
    name = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "missing":
        return (
            f"{name}: missing; `autoprune devices` lists the devices"
            if name == "device"
            else (f"{name}: missing")
        )
    if entry["type"] == "extra_forbidden":
        return f"{name}: {UnknownNameError('setting', name, RunSettings.model_fields)}"
    return f"{name}: {str(entry['msg']).removeprefix('Input ')}, got {entry['input']!r}"
