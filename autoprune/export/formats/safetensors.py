"""The package of weights and plan that ``autoprune.load`` reads."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from autoprune.export.batches import arrays, check_tolerance, compared
from autoprune.export.format import FORMATS, Exportable, Exported, Format
from autoprune.export.package import PLAN_FILE, WEIGHTS_FILE
from autoprune.network.call import tensors_in
from autoprune.network.copies import deep_copy
from autoprune.network.inputs import call_model
from autoprune.version import __version__


@FORMATS.register("safetensors")
class Safetensors(Format):
    """Writes ``network.safetensors`` and ``plan.json``, from which the network is rebuilt."""

    name = "safetensors"

    def write(self, subject: Exportable, folder: Path) -> Exported:
        """Write the package; see :class:`Format`."""
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as trial:
            subject.save(Path(trial))
            loaded = subject.reload(Path(trial)).eval()
        network = deep_copy(subject.model).cpu().eval()
        largest, sizes = compared(
            "the loaded package",
            subject.inputs,
            dynamic=subject.dynamic_batch,
            wanted=lambda inputs: tensors_in(call_model(network, inputs)),
            got=lambda inputs, _: arrays(tensors_in(call_model(loaded, inputs))),
        )
        check_tolerance("the package as loaded", largest, subject.tolerance)
        subject.save(folder)
        return Exported(
            format=self.name,
            files=(WEIGHTS_FILE, PLAN_FILE),
            runtime=f"autoprune {__version__}, torch {torch.__version__}",
            max_abs_difference=largest,
            batch_sizes=sizes,
        )
