"""`benchmarks/peers`: the table, the timing and what is reported; nothing is installed here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.networks import NETWORKS
from benchmarks.peers import environments, table
from benchmarks.peers.__main__ import main
from benchmarks.peers.environments import measure, reason
from benchmarks.peers.table import PEERS, Calls, Peer, named
from benchmarks.peers.timing import NEVER, WARM, compare, report

ROOT = Path(environments.ROOT)
Attached = Counter[tuple[int, str]]


@pytest.fixture
def seen() -> Attached:
    """How often the trivial peer was attached and called, by its interval."""
    return Counter()


@pytest.fixture
def trivial(seen: Attached, monkeypatch: pytest.MonkeyPatch) -> Peer:
    """A peer that counts; "installed" as torch, and alone in the table."""

    @contextmanager
    def attach(
        model: nn.Module, optimizer: torch.optim.Optimizer, interval: int
    ) -> Iterator[Calls]:
        if isinstance(model, nn.TransformerEncoder):
            raise TypeError("no transformers\nand no second line")
        seen[interval, "attached"] += 1
        before, after = [Counter[tuple[int, str]]({(interval, n): 1}) for n in ("before", "after")]
        yield Calls(lambda: seen.update(before), lambda loss: seen.update(after))
        seen[interval, "detached"] += 1

    peer = Peer("trivial", "torch", ("no-such-deadwatch-peer",), "nothing", attach, interval=4)
    monkeypatch.setattr(table, "PEERS", [peer])
    return peer


def by_hand(cache: Path, script: str) -> None:
    """An environment whose python is a shell script."""
    python = cache / "trivial/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)


def test_an_unknown_name_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no peer is called 'nobody'; there are: fastai, wandb"):
        named("nobody")
    with pytest.raises(ValueError, match="no peer is called 'nobody'"):
        measure(["fastai", "nobody"], 1, 1, 1, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_peer_says_what_is_installed_and_what_it_computes() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS) == 5
    for peer in PEERS:
        assert peer.requirements[0].startswith(f"{peer.distribution}==")
        assert peer.computes
        assert peer.interval >= 1


def test_the_runner_prints_its_json_last(
    trivial: Peer, seen: Attached, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = ["--threads", str(torch.get_num_threads())]
    main(["--run", "trivial", "--rounds", "2", "--steps", "1", "--networks", "MLP", *threads])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["torch"] == result["version"] == torch.__version__
    (seconds,) = result["seconds"].values()
    assert set(seconds) == {"bare", "quiet", "logged", "peer"}
    assert min(seconds.values()) > 0
    assert result["failed"] == {}
    for interval in (1, NEVER):  # attached afresh in the warming and both timed rounds
        assert seen[interval, "attached"] == seen[interval, "detached"] == 3
        assert seen[interval, "before"] == seen[interval, "after"] == 3 * (WARM + 10)


def test_an_interval_mixes_steps_with_and_without_a_log(
    trivial: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = {None: 1.0, NEVER: 2.0, 1: 10.0}
    round_of = "benchmarks.peers.timing.Variant.round"
    monkeypatch.setattr(round_of, lambda self, x, steps: of[self._interval])
    seconds = compare(trivial, NETWORKS[0], 2, 1)
    assert seconds == {"bare": 1.0, "quiet": 2.0, "logged": 10.0, "peer": 4.0}


def test_a_network_that_a_peer_cannot_watch_is_a_result(trivial: Peer) -> None:
    result = report(trivial, 1, 1, "transformer")
    assert result["seconds"] == {}
    assert list(result["failed"].values()) == ["TypeError: no transformers"]


def test_what_cannot_be_installed_is_reported_and_leaves_nothing(
    trivial: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    (why,) = measure(["trivial"], 1, 1, 1, cache=tmp_path / "cache").values()
    assert set(why) == {"failed"}
    assert why["failed"].startswith(("Could not find a version", "Cannot install"))
    assert not (tmp_path / "cache/trivial").exists()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo so; echo oh no >&2; exit 3", "oh no"),
        ("exit 3", "exit code 3"),
        ("true", "list index out of range"),
        ("echo no json", "Expecting value"),
    ],
)
def test_a_runner_that_fails_is_reported(
    trivial: Peer, tmp_path: Path, script: str, why: str
) -> None:
    by_hand(tmp_path, script)
    assert why in measure(["trivial"], 1, 1, 1, cache=tmp_path)["trivial"]["failed"]


def test_an_environment_that_is_there_is_used_and_its_last_line_read(
    trivial: Peer, tmp_path: Path
) -> None:
    by_hand(tmp_path, """echo noise; echo "{\\"got\\": \\"$*, $OMP_NUM_THREADS\\"}" """)
    result = measure(["trivial"], 3, 4, 2, "MLP", tmp_path)
    asked = "-m benchmarks.peers --run trivial --rounds 3 --steps 4 --threads 2 --networks MLP, 2"
    assert result == {"trivial": {"got": asked}}


def test_reasons_name_the_clash_and_no_address() -> None:
    printed = (
        "Collecting a\n    The user requested b==2\n    a 1 depends on b<2\n"
        "WARNING: x\nERROR: Cannot install a and b.\nERROR: visit https://host/x\n"
    )
    assert reason(printed) == "Cannot install a and b: a 1 depends on b<2"
    assert reason("ERROR: cannot reach https://host/x now") == "cannot reach … now"
    assert reason("Traceback\nKeyError: 1\n") == "KeyError: 1"


def test_the_runner_needs_no_deadwatch() -> None:
    code = "import sys; sys.modules['deadwatch'] = None; import benchmarks.peers.__main__"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
