"""Lets Tune run on a cluster while the study stays here: questions are fetched and answered.

Ray's client runs no driver of Tune's, and the study must not leave the machine that keeps it. So
Tune runs as a task of the cluster, and an actor beside it holds its questions until they are asked
for.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from autoprune.execution.ray.exchange import Exchange

#: Seconds that one look for questions waits for one.
_WAIT_S = 1.0


class Post:
    """Holds questions and hands back answers; an actor."""

    def __init__(self) -> None:
        """Make an empty one."""
        self._questions: asyncio.Queue[tuple[int, str, tuple[str, ...]]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[str | None]] = {}
        self._count = 0

    async def ask(self, method: str, arguments: tuple[str, ...]) -> str | None:
        """Return the answer to a question, when it has come."""
        self._count += 1
        number = self._count
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._questions.put((number, method, arguments))
        try:
            return await self._answers[number]
        finally:
            del self._answers[number]

    async def next(self) -> tuple[int, str, tuple[str, ...]] | None:
        """Return the oldest question, ``None`` where none came for a while."""
        try:
            return await asyncio.wait_for(self._questions.get(), _WAIT_S)
        except TimeoutError:
            return None

    async def answer(self, number: int, value: str | None) -> None:
        """Hand an answer to who asked."""
        self._answers[number].set_result(value)


class RelayedExchange:
    """An exchange on the cluster that asks one elsewhere."""

    def __init__(self, post: Any) -> None:
        """Store parameters.

        Args:
            post: Handle of a :class:`Post`.
        """
        self._post = post

    def suggest(self, trial_id: str) -> str | None:
        """Return the next proposal."""
        return self._ask("suggest", trial_id)

    def finish(self, trial_id: str, evaluation: str) -> None:
        """Hand on an evaluation."""
        self._ask("finish", trial_id, evaluation)

    def fail(self, trial_id: str, reason: str) -> None:
        """Hand on a failure."""
        self._ask("fail", trial_id, reason)

    def _ask(self, method: str, *arguments: str) -> str | None:
        answer: str | None = ray.get(self._post.ask.remote(method, arguments))
        return answer


def serve(exchange: Exchange, post: Any, search: ray.ObjectRef[None]) -> None:
    """Answer what a search on the cluster asks, until it ends.

    Args:
        exchange: Knows the answers.
        post: Handle of the :class:`Post` that the search asks.
        search: The task that is the search; what it raises is raised here.
    """
    while not ray.wait([search], timeout=0)[0]:
        question = ray.get(post.next.remote())
        if question is not None:
            number, method, arguments = question
            post.answer.remote(number, getattr(exchange, method)(*arguments))
    ray.get(search)
