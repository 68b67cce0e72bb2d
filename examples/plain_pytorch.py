"""Fine-tune a pruned network in a loop of your own: ``python plain_pytorch.py runs/mine/network``.

What `autoprune.load` returns is an ordinary module. Here it learns handwritten digits; put your own
data in `digits`.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import autoprune


def digits() -> tuple[torch.utils.data.Subset, torch.utils.data.Subset]:
    """Return images and classes to train on, and others to test on."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)
    images = (F.interpolate(images, size=(32, 32), mode="bilinear") - 4.875) / 6.004
    samples = TensorDataset(images, torch.tensor(data.target))
    train, test = random_split(samples, [0.8, 0.2], torch.Generator().manual_seed(0))
    return train, test


def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """Return the fraction that a network has right."""
    model.eval()
    with torch.no_grad():
        right = [model(images).argmax(1) == classes for images, classes in loader]
    return float(torch.cat(right).float().mean())


def main(folder: str, *, epochs: int = 5, learning_rate: float = 0.02) -> tuple[float, float]:
    """Train the network of a folder, and return its accuracy before and after."""
    train, test = digits()
    shuffled = DataLoader(
        train, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    model = autoprune.load(folder)
    before = accuracy(model, DataLoader(test, batch_size=256))

    optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(shuffled))
    for _ in range(epochs):
        model.train()
        for images, classes in shuffled:
            loss = F.cross_entropy(model(images), classes)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()

    after = accuracy(model, DataLoader(test, batch_size=256))
    print(f"accuracy {before:.1%} -> {after:.1%}")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a folder with plan.json and network.safetensors")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    main(options.folder, epochs=options.epochs)
