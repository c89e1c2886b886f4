"""Convolutional autoencoders that turn a 28 x 28 image into 16 numbers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

CODE_DIM = 16

_ENCODE_ROWS = 1000


class Autoencoder(nn.Module):
    """Three strided convolutions and four linear layers down to 16 numbers, and the same back up.

    The layers are those of the published experiment: "Understanding multimodal contrastive learning and incorporating
    unpaired data" (Nakada et al. 2023), its code for MNIST and Fashion-MNIST.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            *_linear_layers(32 * 3 * 3, 128, 64, 32, CODE_DIM),
        )
        self.decoder = nn.Sequential(
            *_linear_layers(CODE_DIM, 32, 64, 128, 32 * 3 * 3),
            nn.Unflatten(1, (32, 3, 3)),
            nn.ConvTranspose2d(32, 16, 3, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the reconstruction of ``(B, 1, 28, 28)`` images."""
        reconstruction: Tensor = self.decoder(self.encoder(pixels))
        return reconstruction


def _linear_layers(*widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for taken, given in pairwise(widths):
        layers += [nn.Linear(taken, given), nn.ReLU()]
    return layers[:-1]


def train_autoencoder(pixels: Tensor, *, epochs: int, seed: int, say: Callable[[str], None]) -> Autoencoder:
    """Train on raw pixels: squared error, AdamW at 2e-3, batches of 64, as published.

    Args:
        pixels: ``(N, 28, 28)`` uint8.
        epochs: passes over them (20 in the publication).
        seed: of the weights and the order.
        say: told the mean loss of every epoch.
    """
    torch.manual_seed(seed)
    model = Autoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(epochs):
        total = 0.0
        batches = torch.randperm(len(pixels)).split(64)
        for rows in batches:
            images = pixels[rows].unsqueeze(1).float()
            loss = nn.functional.mse_loss(model(images), images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        say(f"epoch {epoch + 1} of {epochs}: mean squared error {total / len(batches):.0f}")
    return model


@torch.no_grad()
def encode(model: Autoencoder, pixels: Tensor, *, batch_statistics: bool) -> Tensor:
    """Return the ``(N, 16)`` codes of ``(N, 28, 28)`` images.

    Args:
        model: a trained autoencoder.
        pixels: uint8.
        batch_statistics: normalise with the mean and variance of these very images, all at once, as the published
            notebook does by leaving batch norm in training mode; otherwise with those of the training.
    """
    model.train(batch_statistics)
    images = pixels.unsqueeze(1).float()
    parts = (images,) if batch_statistics else images.split(_ENCODE_ROWS)
    return torch.cat([model.encoder(part) for part in parts])
