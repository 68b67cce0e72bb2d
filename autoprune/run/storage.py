"""Where a study lies that several drivers work on, and how that is named without its password."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalRedisBackend

from autoprune.errors import RunError, SettingsError
from autoprune.run.journal import Journal, JournalFile

#: Hears what a user should know, one sentence at a time.
Say = Callable[[str], None]

#: Names the storage of a resumed run where ``run.json`` holds it without its password.
STORAGE_VARIABLE = "AUTOPRUNE_STUDY_STORAGE"

#: Stands for a password wherever a storage is shown or written.
_HIDDEN = "***"

#: Seconds that a process waits for others that write to the same SQLite file.
_SQLITE_WAIT_S = 60

#: How often the tables of a database are made, and seconds in between.
_TRIES, _AGAIN_S = 4, 0.25

_SECRET = re.compile(r"(?i)([?&][^=&]*(?:pass|secret|token)[^=&]*=)[^&]*")


def checked_storage(url: str) -> str:
    """Return the storage that ``url`` names, a file by its absolute path.

    Raises:
        SettingsError: It has another form.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "journal" and rest:
        return f"journal:{Path(rest).expanduser().absolute()}"
    if scheme == "sqlite" and rest.startswith("///") and rest.strip("/"):
        return f"sqlite:///{Path(rest[3:]).expanduser().absolute()}"
    if re.fullmatch(r"postgresql(\+\w+)?|rediss?", scheme) and rest.strip("/") != rest:
        return url
    raise SettingsError(
        "study_storage: expected sqlite:///FILE, postgresql://..., redis://... or journal:FILE, "
        f"got {masked(url)!r}"
    )


def masked(url: str) -> str:
    """Return a storage without its secrets, as it may be shown and written.

    >>> masked("postgresql://ann:s3cret@db.example/studies?sslmode=require")
    'postgresql://ann:***@db.example/studies?sslmode=require'
    """
    # A password may hold an @; a host does not.
    before, at, after = url.rpartition("@")
    scheme, slashes, user = before.partition("://")
    if slashes:
        name, colon, _ = user.partition(":")
        before = scheme + slashes + name + (colon and f":{_HIDDEN}")
    return _SECRET.sub(rf"\1{_HIDDEN}", before + at + after)


def whole_storage(known: str, given: str | None) -> str:
    """Return the storage of a run that goes on, with its password.

    Args:
        known: As ``run.json`` has it.
        given: The same as it was given again; ``None`` looks for :data:`STORAGE_VARIABLE` where
            ``known`` lacks a password.

    Raises:
        SettingsError: Another storage was given.
        RunError: The password is nowhere.
    """
    hidden = _HIDDEN in known
    whole = given or (os.environ.get(STORAGE_VARIABLE) if hidden else known)
    if whole is None:
        raise RunError(
            f"the run's study lies in {known}, whose password is not kept; give --study-storage "
            f"again, or set {STORAGE_VARIABLE} to it"
        )
    whole = checked_storage(whole)
    if masked(whole) != known:
        raise SettingsError(
            f"the run's study lies in {known}, not in {masked(whole)}; a run goes on where its "
            "study is"
        )
    return whole


def open_storage(url: str, *, say: Say) -> BaseStorage:
    """Return the storage at ``url``, made where there is none.

    Args:
        url: From :func:`checked_storage`.
        say: Hears what was mended.

    Raises:
        RunError: It cannot be reached, or a package is missing.
    """
    try:
        return _opened(url, say)
    except ImportError:
        extra = "redis" if url.startswith("redis") else "postgresql"
        raise RunError(
            f"the study storage {masked(url)} needs a package more: "
            f"pip install 'autoprune[{extra}]'"
        ) from None
    except storage_errors() as error:
        raise RunError(f"cannot open the study storage {masked(url)}: {reason_of(error)}") from None


def _opened(url: str, say: Say) -> BaseStorage:
    scheme, _, rest = url.partition(":")
    if scheme == "journal":
        journal = JournalFile(Path(rest))
        cut = journal.mend()
        if cut:
            say(f"{rest} ended in half a line, which was cut off ({cut} bytes)")
        return Journal(journal)
    if scheme.startswith("redis"):
        return Journal(JournalRedisBackend(url))
    # The default driver differs between versions of SQLAlchemy.
    url = re.sub(r"^postgresql:", "postgresql+psycopg:", url)
    # Connections that a server dropped meanwhile are made anew.
    engine = {"connect_args": {"timeout": _SQLITE_WAIT_S}} if scheme == "sqlite" else {}
    return optuna.storages.get_storage(
        _database(url, engine_kwargs={"pool_pre_ping": True, **engine})
    )


def _database(url: str, **options: Any) -> RDBStorage:
    """Return a database, made where there is none, by several drivers at the same moment too."""
    from sqlalchemy.exc import DBAPIError

    for _ in range(_TRIES - 1):
        try:
            return RDBStorage(url, **options)
        except DBAPIError:  # another driver made the same table
            time.sleep(_AGAIN_S)
    return RDBStorage(url, **options)


def storage_errors() -> tuple[type[Exception], ...]:
    """Return what a storage raises that cannot be read or written."""
    from sqlalchemy.exc import SQLAlchemyError

    known: list[type[Exception]] = [OSError, SQLAlchemyError, optuna.exceptions.OptunaError]
    try:
        from redis.exceptions import RedisError
    except ImportError:
        return tuple(known)
    return (*known, RedisError)


def reason_of(error: BaseException) -> str:
    """Return the first line of what lies behind a storage's error."""
    origin = error.__cause__ or error
    lines = str(getattr(origin, "orig", None) or origin).strip().splitlines()
    return lines[0] if lines else type(origin).__name__
