"""Fine-tune a pruned network with Lightning: ``python lightning_finetune.py runs/mine/network``.

`autoprune.load` returns the `nn.Module` that the `LightningModule` trains; nothing else differs
from any other network. The digits stand for your own data.
"""

from __future__ import annotations

import argparse

import lightning
import torch
from plain_pytorch import accuracy, digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import autoprune


class Classifier(lightning.LightningModule):
    """Trains a network by cross-entropy."""

    def __init__(self, network: nn.Module, *, learning_rate: float) -> None:
        """Store parameters."""
        super().__init__()
        self.network, self.learning_rate = network, learning_rate

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, classes = batch
        return F.cross_entropy(self.network(images), classes)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.SGD(self.network.parameters(), lr=self.learning_rate, momentum=0.9)


def main(folder: str, *, epochs: int = 5, learning_rate: float = 0.01) -> tuple[float, float]:
    """Train the network of a folder, and return its accuracy before and after."""
    lightning.seed_everything(0, verbose=False)
    train, test = digits()
    network = autoprune.load(folder).train()
    before = accuracy(network, DataLoader(test, batch_size=256))

    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    network.train()
    trainer.fit(
        Classifier(network, learning_rate=learning_rate),
        DataLoader(train, batch_size=64, shuffle=True),
    )

    after = accuracy(network.cpu(), DataLoader(test, batch_size=256))
    print(f"accuracy {before:.1%} -> {after:.1%}")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a folder with plan.json and network.safetensors")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    main(options.folder, epochs=options.epochs)
