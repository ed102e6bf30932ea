"""Under Lightning's DDP strategy the ranks agree, with each other and with one process."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deadwatch import DeadWatch, Policy, Recycle, Rules, Swap
from deadwatch.plain import to_plain
from tests.fitting import lightning_remarks
from tests.parallel import Place, Results, Runs, hashed, on_ranks
from tests.test_ddp import network, require_equal


class Margin(LightningModule):
    """Calls its network twice a step; its hinge losses are functions of the training step."""

    def __init__(self) -> None:
        super().__init__()
        self.net: nn.Module = network()
        self.seen: list[str] = []

    def training_step(self, x: Tensor) -> Tensor:
        near, far = self.net(x), self.net(-x)
        return F.relu(1 - near * x[:, :3].sign()).mean() + F.relu(0.5 + far).mean()

    def on_train_batch_end(self, *_: object) -> None:
        optimizer: Any = self.optimizers()
        self.seen.append(hashed(self, optimizer.optimizer))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Fit:
    """One fit.

    Args:
        policy: What treats the network; None to only watch.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy

    def __call__(self, place: Place) -> dict[str, Any]:
        if place.ranks > 1:
            os.environ["LOCAL_RANK"] = str(place.rank)
        torch.manual_seed(100 + place.rank)
        data = torch.randn(64, 6, generator=torch.Generator().manual_seed(4)).double()
        (share,) = place.shares(data, apart=1)
        watcher = DeadWatch(self._policy, rules=Rules(min_samples=1), stats_every_n_steps=1)
        trainer = Trainer(
            max_epochs=3,
            accelerator="cpu",
            devices=place.ranks,
            strategy="ddp" if place.ranks > 1 else "auto",
            gradient_clip_val=1.0,
            callbacks=[watcher],
            use_distributed_sampler=False,  # it would shuffle
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        model = Margin().double()
        with lightning_remarks():
            trainer.fit(model, DataLoader(share, batch_size=32 // place.ranks))
        assert watcher.watch is not None
        return {
            "report": watcher.report,
            "ledger": repr(to_plain(watcher.watch.ledger.state_dict())),
            "hashes": model.seen,
            "weights": model.state_dict(),
        }


RUNS: Runs = {
    "watched": Fit(),
    "treated": Fit(Policy((Recycle(), Swap("prelu")), when=0.0, cooldown=0)),
    "PReLU": Fit(Policy((Swap("prelu"),), when=0.0, cooldown=0)),
}
BOTH = {2: RUNS}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    return on_ranks("tests.test_ddp_lightning:BOTH", tmp_path_factory.mktemp("ranks"), 2)


@pytest.mark.parametrize("name", RUNS)
def test_ranks_agree(ranks: list[Results], name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert first["hashes"] == second["hashes"]
    assert first["ledger"] == second["ledger"]
    assert repr(to_plain(first["report"])) == repr(to_plain(second["report"]))


@pytest.mark.parametrize("name", RUNS)
def test_sites_and_figures_are_those_of_one_process(ranks: list[Results], name: str) -> None:
    """Also names: the strategy has the training step run inside of the model's forward."""
    found, expected = ranks[0][name], RUNS[name](Place())
    assert set(found["report"]) == set(expected["report"]) == {"net.1", "net.3"}
    for site in expected["report"]:
        require_equal(found["report"][site], expected["report"][site])
    for key, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][key], value, rtol=1e-6, atol=1e-9)
