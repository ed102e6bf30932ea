"""Units that the forward keeps for later, such as latents under a penalty, are recycled as well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deadwatch import Policy, Recycle, Restandardize, Revive, Rules, ThermalKick, Watch
from deadwatch.treat.remedies.base import Remedy

DEAD = [1, 4]


class SparseAutoencoder(nn.Module):
    """Keeps or returns its latents, of which a penalty is taken outside the forward."""

    def __init__(self, returns: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 10)
        self.act = nn.ReLU()
        self.decoder = nn.Linear(10, 6)
        self.returns = returns
        self.latents = torch.empty(0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.act(self.encoder(x))
        if not self.returns:
            self.latents = latents
        decoded = self.decoder(latents)
        return decoded, (latents if self.returns else torch.empty(0))


@pytest.mark.parametrize("remedy", [Recycle(), Restandardize(), ThermalKick(), Revive()], ids=str)
@pytest.mark.parametrize("returns", [True, False])
def test_the_decoder_sees_nothing_of_it_at_once(remedy: Remedy, returns: bool) -> None:
    torch.manual_seed(0)
    model = SparseAutoencoder(returns)
    with torch.no_grad():
        model.encoder.bias[DEAD] = -9
    x = torch.randn(50, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    policy = Policy(remedy, when=0.0)
    watch = Watch(model, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1))
    with watch:
        before, _ = model(x)
        report = watch.close_window()
        after, latents = model(x)
    site = report["act"].site
    assert not site.consumers
    assert [wire.module for wire in site.known_consumers] == ["decoder"]
    (treatment,) = report.treatments
    assert treatment.units.tolist() == DEAD
    assert not treatment.quiet
    torch.testing.assert_close(after, before)
    kept = latents if returns else model.latents
    if not isinstance(remedy, ThermalKick):
        assert (kept[:, DEAD] > 0).any(0).all()


def test_where_no_layer_reads_the_units_recycling_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU())
    with torch.no_grad():
        model[0].bias[DEAD] = -9
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    policy = Policy(Recycle(), when=0.0)
    watch = Watch(model, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1))
    with watch:
        model(torch.randn(50, 6))
        (refusal,) = watch.close_window().refusals
    assert "code outside the forward" in refusal.reason


class Centred(nn.Module):
    """The usual sparse autoencoder: the decoder's bias is subtracted at the input."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 10)
        self.decoder = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        latents = torch.relu(self.encoder(x - self.decoder.bias))
        decoded: Tensor = self.decoder(latents)
        return decoded


def test_a_bias_that_is_used_twice_does_not_hide_the_reader() -> None:
    torch.manual_seed(0)
    model = Centred()
    with torch.no_grad():
        model.encoder.bias[DEAD] = -9
    x = torch.randn(50, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    policy = Policy(Recycle(), when=0.0)
    watch = Watch(model, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1))
    with watch:
        before = model(x)
        report = watch.close_window()
        (treatment,) = report.treatments
        torch.testing.assert_close(model(x), before)
    assert treatment.quiet
    assert treatment.units.tolist() == DEAD
