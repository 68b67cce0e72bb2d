"""Where a model comes from: one line that names an architecture, and optionally its weights."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.network.factory import (
    FactoryCall,
    call_factory,
    module_exists,
    nearest,
    parse_call,
)
from autoprune.network.fake import is_fake, outgrows_memory, weightless
from autoprune.network.huggingface import build_hf, config_file
from autoprune.network.resnet import digits_resnet20
from autoprune.network.vision import build_timm, build_torchvision

_FORMS = (
    "digits, torchvision:NAME, timm:NAME, hf:FOLDER, package.module:factory, path/file.py:factory"
)
_KINDS = ("digits", "torchvision", "timm", "hf")
#: Where an architecture can be built without its weights, to see how large it is.
_MEASURABLE = ("torchvision", "timm", "hf")
_DIGITS_WEIGHTS = Path(__file__).resolve().parent.parent / "tasks" / "digits_resnet20.safetensors"

#: Entries under which checkpoints keep the state dict proper.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
#: Prefixes that DataParallel and torch.compile put before every key.
_PREFIXES = ("module.", "_orig_mod.")


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """An architecture by name, and the file its weights come from.

    Attributes:
        spec: ``digits``, ``torchvision:NAME``, ``timm:NAME``, ``hf:PATH`` (a folder with the
            ``config.json`` of a model of transformers, or that file), ``package.module:factory`` or
            ``path/file.py:factory``; all but the first may carry literal arguments,
            ``torchvision:resnet18(num_classes=10)``.
        weights: Absolute path of a ``.safetensors``, ``.pt`` or ``.pth`` file; ``None`` leaves the
            weights the architecture is built with.
        call: The parsed ``spec``; ``None`` for ``digits``.
    """

    spec: str
    weights: Path | None = None
    call: FactoryCall | None = None

    @classmethod
    def parse(cls, spec: str, *, weights: str | Path | None = None) -> ModelSource:
        """Return the source that ``spec`` describes, files resolved; nothing is built yet.

        >>> ModelSource.parse("torchvision:resnet18").kind
        'torchvision'

        Args:
            spec: As for :attr:`spec`.
            weights: File with the weights.

        Raises:
            ModelError: ``spec`` has none of the forms, or a file is missing.
        """
        path = None if weights is None else Path(weights).expanduser().absolute()
        if path is not None and not path.is_file():
            raise ModelError(f"there is no weights file {path}")
        spec = spec.strip()
        if spec == "digits":
            return cls(spec, path)
        if spec.startswith("hf:"):
            return _hf_source(spec, path)
        call = parse_call(spec, error=ModelError)
        if call is None or call.head == "digits":
            raise ModelError(
                f"no model {spec!r}{nearest(spec, _KINDS)}. A model is one of {_FORMS}"
            )
        if call.in_file:
            file = Path(call.head).expanduser().absolute()
            if not file.is_file():
                raise ModelError(f"there is no Python file {file}, which {spec!r} names")
            call = dataclasses.replace(call, head=str(file))
            spec = str(file) + spec[spec.index(".py:") + len(".py") :]
        elif call.head not in _KINDS:
            _check_module(call.head, spec)
        return cls(spec, path, call)

    @property
    def kind(self) -> str:
        """``"digits"``, ``"torchvision"``, ``"timm"``, ``"hf"``, ``"module"`` or ``"file"``."""
        if self.call is None:
            return "digits"
        if self.call.in_file:
            return "file"
        return self.call.head if self.call.head in _KINDS else "module"

    @property
    def trusted(self) -> bool:
        """Whether building it runs no code but that of autoprune and the packages it names."""
        return self.kind in _KINDS

    def build(self, *, seed: int = 0) -> nn.Module:
        """Return the model in evaluation mode; see :meth:`build_with_notes`."""
        return self.build_with_notes(seed=seed)[0]

    def build_with_notes(
        self, *, seed: int = 0, fake: bool = False
    ) -> tuple[nn.Module, tuple[str, ...]]:
        """Return the model in evaluation mode and what its user should know about it.

        Args:
            seed: For randomly initialised weights, so that a resumed run starts from the same
                ones; the global generators are left as they were.
            fake: Build it with parameters that have no values and take no memory (on the ``meta``
                device); a file of weights is then only checked to fit.

        Returns:
            The model, and sentences: random weights, entries or prefixes taken off a checkpoint.

        Raises:
            ModelError: The model cannot be built, or the weights do not fit it.
        """
        with torch.random.fork_rng(devices=[]), weightless() if fake else nullcontext():
            torch.default_generator.manual_seed(seed)
            model, notes = self._architecture(values=not fake)
        if self.weights is not None:
            notes += load_weights(model, self.weights)
        elif self.kind == "digits" and not fake:
            notes += load_weights(model, _DIGITS_WEIGHTS)
        elif self.trusted and not fake and not self._has_own_weights:
            notes += (f"{self.spec} has random weights; give trained ones with --weights FILE",)
        return model.eval(), notes

    def outgrows_memory(self) -> bool:
        """Return whether the weights alone would take over a quarter of the free memory.

        What a function of the user makes is not known before it has run: never for those.

        Raises:
            ModelError: The model cannot be built.
        """
        if self.kind not in _MEASURABLE:
            return False
        return outgrows_memory(self.build_with_notes(fake=True)[0])

    def describe(self) -> dict[str, str | None]:
        """Return what a run directory records: ``spec``, ``weights`` and ``weights_sha256``.

        ``weights`` is an absolute path; both weights entries are ``None`` where no file was given.

        Raises:
            ModelError: The weights file cannot be read.
        """
        if self.weights is None:
            return {"spec": self.spec, "weights": None, "weights_sha256": None}
        try:
            with self.weights.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"cannot read {self.weights}: {error.strerror}") from error
        return {"spec": self.spec, "weights": str(self.weights), "weights_sha256": digest}

    @property
    def _has_own_weights(self) -> bool:
        """Whether weights lie beside the configuration that ``spec`` names."""
        if self.kind != "hf" or self.call is None:
            return False
        folder = Path(self.call.name)
        return folder.is_dir() and any(folder.glob("*.safetensors"))

    def _architecture(self, *, values: bool) -> tuple[nn.Module, tuple[str, ...]]:
        """Return the model as its architecture builds it, and notes.

        Args:
            values: Whether to read weights that come with it, where no others are given.
        """
        if self.call is None:
            return digits_resnet20(), ()
        if self.trusted and self.call.args:
            raise ModelError(f"{self.spec}: arguments need names, e.g. (num_classes=10)")
        if self.kind == "hf":
            read = values and self.weights is None
            return build_hf(self.call.name, values=read, **self.call.kwargs)
        if self.trusted:
            build = build_torchvision if self.kind == "torchvision" else build_timm
            return build(self.call.name, **self.call.kwargs), ()
        return call_factory(self.call, nn.Module, error=ModelError), ()


def load_weights(model: nn.Module, path: str | Path) -> tuple[str, ...]:
    """Load a file's weights into ``model``, every key and shape as the model has them.

    A checkpoint may be a bare state dict or hold one under ``state_dict``, ``model_state_dict`` or
    ``model``; the prefixes of DataParallel and torch.compile are taken off. BatchNorm's batch
    counters, which inference does not read, may be missing.

    Args:
        model: Changed in place.
        path: ``.safetensors``, ``.pt`` or ``.pth``; no code in it is run.

    Returns:
        What was taken off, filled in or converted, a sentence each.

    Raises:
        ModelError: The file is missing, damaged, or holds more than tensors, or its keys or shapes
            differ from the model's.
    """
    path = Path(path)
    fake = is_fake(model)
    state, notes = _unwrapped(_read(path, shapes_only=fake), model, path)
    expected = model.state_dict()
    counters = [
        key
        for key in expected.keys() - state.keys()
        if key.rpartition(".")[2] == "num_batches_tracked"
    ]
    if counters and state:
        state |= {key: expected[key] for key in counters}
        notes.append(f"{len(counters)} batch counters of BatchNorm are not in the file")
    _check_fit(state, expected, path)
    if fake:
        return (*notes, f"the weights in {path} fit the model; their values are not read")
    converted = {
        f"{state[key].dtype} to {value.dtype}"
        for key, value in expected.items()
        if isinstance(value, Tensor) and value.dtype != state[key].dtype
    }
    if converted:
        notes.append(f"converted {', '.join(sorted(converted))}".replace("torch.", ""))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit the model: {error}") from error
    return tuple(notes)


def _hf_source(spec: str, weights: Path | None) -> ModelSource:
    """Return the source ``hf:PATH(arguments)``, the path made absolute.

    Raises:
        ModelError: There is no configuration, or the arguments are no literals.
    """
    text = spec.removeprefix("hf:")
    # A path may hold brackets itself: the longest part that exists is the path.
    ends = [len(text), *(match.start() for match in reversed([*re.finditer(r"\(", text)]))]
    end = next((end for end in ends if Path(text[:end]).expanduser().exists()), ends[-1])
    path, arguments = text[:end], text[end:]
    file = config_file(path)
    call = parse_call(f"hf:model{arguments}", error=ModelError)
    assert call is not None  # the form is ours
    folder = Path(path).expanduser().absolute()
    name = str(folder if folder.is_dir() else file)
    return ModelSource(f"hf:{name}{arguments}", weights, dataclasses.replace(call, name=name))


def _check_module(module: str, spec: str) -> None:
    """Raise unless the first part of the dotted name ``module`` can be found."""
    if module_exists(module):
        return
    top = module.partition(".")[0]
    reason = (
        f"no module named {top!r}; install it or put its folder on PYTHONPATH"
        if top.isidentifier()
        else f"{module!r} is neither a module nor a file that ends in .py"
    )
    raise ModelError(
        f"no model {spec!r}: {reason}{nearest(top, _KINDS)}. A model is one of {_FORMS}"
    )


def _read(path: Path, *, shapes_only: bool) -> object:
    """Return what the file holds; only tensors and plain containers are ever unpickled.

    Args:
        path: The file.
        shapes_only: Return tensors without values (on the ``meta`` device).
    """
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return _header(path) if shapes_only else load_file(path)
        if path.suffix in (".pt", ".pth"):
            with warnings.catch_warnings():
                # torch warns of pickle protocols; what it cannot read raises anyway.
                warnings.simplefilter("ignore", UserWarning)
                where = "meta" if shapes_only else "cpu"
                return torch.load(path, map_location=where, weights_only=True)
    except SafetensorError as error:
        raise ModelError(
            f"{path} is truncated or no safetensors file ({error}); copy or download it again"
        ) from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is damaged, or holds Python objects that would run code when loaded, which "
            f"autoprune refuses ({_unpickling_reason(error)}); save the weights alone: "
            "torch.save(model.state_dict(), path), or safetensors.torch.save_model(model, path)"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ModelError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error}); copy or "
            "download it again"
        ) from error
    raise ModelError(
        f"weights come as .safetensors, .pt or .pth files, not {path.suffix or path.name!r}"
    )


def _header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file without values; their type is not looked up."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in names}


def _unpickling_reason(error: Exception) -> str:
    """Return the line of torch's long message that says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    marked = [line for line in lines if "WeightsUnpickler error" in line]
    return (marked or lines or ["empty message"])[0]


def _unwrapped(
    content: object, model: nn.Module, path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict inside a checkpoint, keys as in ``model``, and what was taken off."""
    notes: list[str] = []
    if not isinstance(content, Mapping):
        raise ModelError(
            f"{path} holds {type(content).__name__}, not a state dict; save model.state_dict()"
        )
    for wrapper in _WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping):
            content = inner
            notes.append(f"took the entry {wrapper!r} of the checkpoint")
            break
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise ModelError(
            f"{path} is no state dict: {_listed(strange)} {'are' if strange[1:] else 'is'} no "
            f"tensor. A checkpoint holds tensors only, or them under {' or '.join(_WRAPPERS)}"
        )
    state = {str(key): value for key, value in content.items()}
    names = model.state_dict().keys()
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            if any(name.startswith(prefix) for name in names):
                continue
            state = {key.removeprefix(prefix): value for key, value in state.items()}
            notes.append(f"stripped the prefix {prefix!r} from all {len(state)} keys")
    return state, notes


def _check_fit(state: Mapping[str, Tensor], expected: Mapping[str, object], path: Path) -> None:
    """Raise with every kind of mismatch between a state dict and the model's."""
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shapes = [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(value.shape)} in the model"
        for key, value in expected.items()
        if key in state and isinstance(value, Tensor) and value.shape != state[key].shape
    ]
    faults = [
        f"{len(found)} {what} ({_listed(found)})"
        for what, found in (
            ("missing from the file", missing),
            ("unknown to the model", unexpected),
            ("of another shape", shapes),
        )
        if found
    ]
    if faults:
        raise ModelError(
            f"{path} does not fit the model, which has {len(expected)} keys: {', '.join(faults)}; "
            "build the architecture that the weights were trained in, with its number of classes"
        )


def _listed(items: list[str], limit: int = 3) -> str:
    """Return the first items, and how many more there are.

    >>> _listed(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")
