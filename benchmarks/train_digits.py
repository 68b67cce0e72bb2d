"""Trains the ResNet-20 that ships with autoprune for the embedded digits task.

    python benchmarks/train_digits.py [--output FOLDER]

writes ``digits_resnet20.safetensors`` and ``digits_resnet20.json`` (how it was trained and the
accuracies measured afterwards) into FOLDER, ``autoprune/tasks`` of this checkout by default. Plain
training: cross-entropy, stochastic gradient descent with momentum and weight decay, cosine decay
of the learning rate, random shifts, rotations and scalings; no sparsity regularisation. The test
split is evaluated once, at the end; nothing was chosen by it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.network.resnet import digits_resnet20
from autoprune.tasks.base import classification_score
from autoprune.tasks.digits import digits

EPOCHS = 40
BATCH = 64
LEARNING_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
SEED = 0
MAX_SHIFT = 0.12  # fraction of the half width
MAX_ROTATION = math.radians(12)
MAX_SCALING = 0.1
NAME = "digits_resnet20"


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images (n, 1, h, w), each randomly rotated, scaled and shifted."""
    uniform = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle, scale = uniform[0] * MAX_ROTATION, 1 + uniform[1] * MAX_SCALING
    shift = uniform[2:] * MAX_SHIFT
    rows = torch.stack(
        [
            torch.stack([scale * angle.cos(), -scale * angle.sin(), shift[0]], dim=1),
            torch.stack([scale * angle.sin(), scale * angle.cos(), shift[1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    # Outside the page there is no ink: the border's own value continues.
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(images: Tensor, targets: Tensor, generator: torch.Generator) -> nn.Module:
    """Return the network trained on ``images`` (n, 1, 32, 32) with class indices ``targets``."""
    torch.manual_seed(SEED)  # the initial weights; this is a script, not library code
    model = digits_resnet20().train()
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        nesterov=True,
    )
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        LEARNING_RATE,
        total_steps=EPOCHS * steps,
        pct_start=0.1,
        anneal_strategy="cos",
        cycle_momentum=False,
    )
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            loss = F.cross_entropy(model(augmented(images[batch], generator)), targets[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1:2d}/{EPOCHS}  training loss {total / steps:.4f}", flush=True)
    return model.eval()


def main() -> None:
    """Train, measure all three splits, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parent.parent / "autoprune" / "tasks"
    parser.add_argument("--output", type=Path, default=default)
    output = parser.parse_args().output
    torch.use_deterministic_algorithms(True)
    task = digits()
    images, targets = task.training.batch(0, len(task.training))
    start = time.perf_counter()
    model = train(images, targets, torch.Generator().manual_seed(SEED))
    seconds = time.perf_counter() - start
    scores = {
        "training": classification_score(model, [(images, targets)], classes=10),
        "search": task.evaluate(model, "search"),
        "test": task.evaluate(model, "test"),
    }
    for split, score in scores.items():
        print(
            f"{split}: accuracy {score.accuracy:.4f}, loss {score.loss:.4f} "
            f"({score.samples} images)"
        )
    (output / f"{NAME}.safetensors").write_bytes(save(model.state_dict()))
    record = {
        "version": 1,
        "network": NAME,
        "script": "benchmarks/train_digits.py",
        "seed": SEED,
        "epochs": EPOCHS,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(seconds),
        "splits": {
            split: {
                "accuracy": round(score.accuracy, 6),
                "loss": round(score.loss, 6),
                "samples": score.samples,
            }
            for split, score in scores.items()
        },
    }
    (output / f"{NAME}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {output / NAME}.safetensors and .json after {seconds:.0f} s")


if __name__ == "__main__":
    main()
