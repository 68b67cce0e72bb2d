"""Calls functions of the user by name: ``package.module:factory`` or ``path/file.py:factory``.

Both may carry literal arguments: ``nets.py:resnet(56, classes=10)``.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from autoprune.errors import AutopruneError

T = TypeVar("T")

#: Modules made from files carry this prefix and a hash of path and content.
FILE_MODULE_PREFIX = "_autoprune_file_"

_SPEC = re.compile(r"(?P<head>.+?):(?P<name>[A-Za-z_][\w.]*)(?P<arguments>\(.*\))?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class FactoryCall:
    """One call of a named function, as written in ``head:name(arguments)``.

    Attributes:
        head: What stands before the colon: a module, a Python file, or a word such as ``timm``.
        name: The function, dotted where it is an attribute of something.
        args: Positional arguments, Python literals.
        kwargs: Keyword arguments, Python literals.
    """

    head: str
    name: str
    args: tuple[object, ...] = ()
    kwargs: dict[str, object] = dataclasses.field(default_factory=dict)

    @property
    def in_file(self) -> bool:
        """Whether ``head`` is a Python file."""
        return self.head.endswith(".py")

    @property
    def location(self) -> str:
        """The function without its arguments, for messages."""
        return f"{self.head}:{self.name}"


def parse_call(spec: str, *, error: type[AutopruneError]) -> FactoryCall | None:
    """Return the call that ``spec`` describes, ``None`` where it is not of the form ``head:name``.

    >>> parse_call("nets.py:resnet(56, classes=10)", error=AutopruneError)
    FactoryCall(head='nets.py', name='resnet', args=(56,), kwargs={'classes': 10})

    Args:
        spec: ``head:name`` or ``head:name(literal arguments)``.
        error: Raised, with a message, where the arguments are no literals.
    """
    match = _SPEC.fullmatch(spec.strip())
    if match is None:
        return None
    args, kwargs = _literals(match["arguments"] or "()", spec, error)
    return FactoryCall(match["head"], match["name"], args, kwargs)


def call_factory(call: FactoryCall, wanted: type[T], *, error: type[AutopruneError]) -> T:
    """Import the function, call it, and return what it returns.

    Code of the user runs: anything it raises, except our own errors, comes back as ``error``.

    Args:
        call: Which function, with which arguments.
        wanted: Type of what it must return; ``object`` for anything.
        error: Raised where something goes wrong.
    """
    function = find(call, error=error)
    if not callable(function) or (wanted is not object and isinstance(function, wanted)):
        raise error(
            f"{call.location} is no function but {_described(function)}; "
            f"name a function or class that returns the {wanted.__name__} when called"
        )
    with contextlib.suppress(ValueError):  # builtins without a signature
        try:
            inspect.signature(function).bind(*call.args, **call.kwargs)
        except TypeError as reason:
            raise error(
                f"{call.location} takes {inspect.signature(function)}: {reason}; "
                "arguments go in brackets after its name, e.g. nets.py:resnet(56)"
            ) from None
    with _reported(f"{call.location} failed", error):
        made = function(*call.args, **call.kwargs)
    if not isinstance(made, wanted):
        raise error(
            f"{call.location} returned {_described(made)}; "
            f"expected {wanted.__module__}.{wanted.__qualname__} or a class derived from it"
        )
    return made


def find(call: FactoryCall, *, error: type[AutopruneError]) -> object:
    """Import the module or file, and return what the call's name stands for in it.

    Args:
        call: Where to look; its arguments are not used.
        error: Raised where there is no such thing, or importing fails.
    """
    return _attribute(_module(call, error), call, error)


def file_modules() -> tuple[ModuleType, ...]:
    """Return the modules made from files of the user.

    Another process cannot import them by name; whoever pickles their classes for one registers
    them with ``cloudpickle.register_pickle_by_value`` first.
    """
    return tuple(
        module for name, module in sys.modules.items() if name.startswith(FILE_MODULE_PREFIX)
    )


def module_exists(module: str) -> bool:
    """Return whether the first part of a dotted module name can be imported.

    The rest is not looked up: finding a submodule would import its parents.
    """
    top = module.partition(".")[0]
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    return top in sys.modules or importlib.util.find_spec(top) is not None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the names nearest to ``name``, or nothing.

    >>> nearest("resnet81", ["resnet18", "vgg11"])
    "; did you mean 'resnet18'?"
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _literals(
    arguments: str, spec: str, error: type[AutopruneError]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return positional and keyword arguments of ``"(...)"``."""
    try:
        call = ast.parse(f"f{arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError  # more than one call, or an operator behind it
        if any(key.arg is None for key in call.keywords):
            raise ValueError  # **mapping
        args = tuple(ast.literal_eval(node) for node in call.args)
        kwargs = {str(key.arg): ast.literal_eval(key.value) for key in call.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise error(
            f"the arguments in {spec!r} are not Python literals separated by commas; "
            "write e.g. nets.py:resnet(56, classes=10)"
        ) from None
    return args, kwargs


def _module(call: FactoryCall, error: type[AutopruneError]) -> ModuleType:
    """Return the module that ``call.head`` names."""
    if call.in_file:
        return _from_file(Path(call.head), error)
    try:
        with _reported(f"importing {call.head} failed", error, through=ModuleNotFoundError):
            return importlib.import_module(call.head)
    except ModuleNotFoundError as reason:
        raise error(
            f"importing {call.head!r} failed: {reason}; install it, put its folder on PYTHONPATH, "
            "or name a file: path/file.py:factory"
        ) from reason


def _from_file(path: Path, error: type[AutopruneError]) -> ModuleType:
    """Return the file as a module of a private name, executed once per content."""
    try:
        path = path.resolve(strict=True)
        source = path.read_bytes()
    except OSError as reason:
        raise error(f"cannot read the Python file {path}: {reason.strerror}") from reason
    digest = hashlib.sha256(bytes(path) + b"\0" + source).hexdigest()[:16]
    name = FILE_MODULE_PREFIX + digest
    if name in sys.modules:
        return sys.modules[name]
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # a loader was given
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs, as the import system does: dataclasses and torch.compile look
    # their module up by name.
    sys.modules[name] = module
    try:
        with _reported(f"importing {path} failed", error):
            # Not loader.exec_module: what runs is what was hashed, never stale bytecode.
            exec(loader.source_to_code(source, str(path)), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _attribute(module: ModuleType, call: FactoryCall, error: type[AutopruneError]) -> object:
    """Return what ``call.name`` names inside ``module``."""
    found: object = module
    for part in call.name.split("."):
        if not hasattr(found, part):
            known = [name for name, value in vars(found).items() if callable(value)]
            raise error(
                f"{call.head} has nothing called {call.name!r}"
                + (nearest(part, known) or f". Known: {', '.join(sorted(known)) or 'none'}")
            )
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def _reported(
    what: str,
    error: type[AutopruneError],
    *,
    through: type[Exception] | None = None,
) -> Iterator[None]:
    """Turn what the body raises into ``error``; our own errors and ``through`` pass."""
    try:
        yield
    except AutopruneError:
        raise
    except (Exception, SystemExit) as reason:
        if through is not None and isinstance(reason, through):
            raise
        raise error(f"{what}: {type(reason).__name__}: {reason}") from reason


def _described(value: object) -> str:
    """Return a value's type with its article, for messages."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
