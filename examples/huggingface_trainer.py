"""Fine-tune a pruned network with Hugging Face's Trainer: ``python huggingface_trainer.py DIR``.

The Trainer takes any module that returns its loss; `WithLoss` adds one to what `autoprune.load`
returns. A pruned transformers model returns its loss by itself when it is given `labels`. The
digits stand for your own data.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from plain_pytorch import accuracy, digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import autoprune


class WithLoss(nn.Module):
    """A network that returns its loss first, as the Trainer expects."""

    def __init__(self, network: nn.Module) -> None:
        """Store the network."""
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and logits."""
        logits = self.network(pixel_values)
        return F.cross_entropy(logits, labels), logits


def collated(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return samples as the keyword arguments of :class:`WithLoss`."""
    images, classes = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(classes)}


def main(folder: str, *, epochs: int = 5, learning_rate: float = 2e-3) -> tuple[float, float]:
    """Train the network of a folder, and return its accuracy before and after."""
    train, test = digits()
    network = autoprune.load(folder)
    before = accuracy(network, DataLoader(test, batch_size=256))

    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_train_batch_size=64,
            lr_scheduler_type="cosine",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        )
        Trainer(
            model=WithLoss(network.train()),
            args=arguments,
            train_dataset=train,
            data_collator=collated,
        ).train()

    after = accuracy(network.cpu(), DataLoader(test, batch_size=256))
    print(f"accuracy {before:.1%} -> {after:.1%}")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a folder with plan.json and network.safetensors")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    main(options.folder, epochs=options.epochs)
