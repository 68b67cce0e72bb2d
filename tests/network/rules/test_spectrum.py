from __future__ import annotations

import torch


def test_channels_pass_a_transform_of_the_positions(between):
    def operation(x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft2(x)
        return (
            torch.fft.irfft2(spectrum * spectrum.conj(), s=(8, 8)) + torch.fft.ifft(x, dim=2).real
        )

    assert between(operation).places("before")["after.weight", 1] == [[i] for i in range(8)]


def test_channels_that_are_transformed_stay(between):
    network = between(lambda x: torch.fft.fft(x, dim=1).real).network
    assert network.frozen["before"] == "transformed to frequencies"
