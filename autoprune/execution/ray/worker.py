"""The process that evaluates candidates: started once, used for one after the other."""

from __future__ import annotations

import faulthandler
import json

import ray
import torch
from ray import tune

from autoprune.evaluation import Evaluates
from autoprune.execution.ray.exchange import decoded
from autoprune.execution.time_limit import TimeLimited
from autoprune.network.vision import load_torchvision

#: Seconds that an evaluation beyond its limit has to come back before its process is ended.
_GRACE_S = 10.0

#: What loggers show of an evaluation.
METRICS = ("loss", "accuracy", "latency_ms", "macs", "params", "seconds")


class Worker(tune.Trainable):
    """One long-lived process that evaluates one candidate per Tune trial."""

    def setup(  # type: ignore[override] # tune.with_parameters adds what follows the config
        self,
        config: dict[str, str],
        shipped: list[ray.ObjectRef[Evaluates]],
        torchvision: bool,
        threads: int,
        time_limit_s: float | None,
    ) -> None:
        """Open the evaluator and take the first candidate.

        Args:
            config: The first trial's.
            shipped: A reference to the evaluator, which each node fetches once.
            torchvision: Whether the evaluator may need torchvision, which not every torch can
                import as it is.
            threads: Threads that evaluations compute in.
            time_limit_s: Seconds that one may take.
        """
        torch.set_num_threads(threads)
        if torchvision:
            load_torchvision()
        self._evaluator: Evaluates = ray.get(shipped[0])
        self._time_limit_s = time_limit_s
        if time_limit_s is not None:
            self._evaluator = TimeLimited(self._evaluator, time_limit_s)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, str]) -> bool:
        """Take the next candidate; the process stays."""
        self._candidate, self._bar = decoded(new_config["proposal"])
        return True

    def step(self) -> dict[str, object]:
        """Return the evaluation as plain values.

        An evaluation beyond its limit has failed. What hangs where no Python code runs cannot even
        be interrupted; its process is ended, and Tune sees a dead worker.
        """
        if self._time_limit_s is not None:
            faulthandler.dump_traceback_later(self._time_limit_s + _GRACE_S, exit=True)
        try:
            evaluation = self._evaluator(self._candidate, self._bar)
        finally:
            faulthandler.cancel_dump_traceback_later()
        values = evaluation.to_json()
        metrics = {name: values[name] for name in METRICS}
        return {"evaluation": json.dumps(values), "done": True, **metrics}
