"""The pipeline: observe, judge, treat. The only place that knows every stage."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from deadwatch.activations import slopes_of
from deadwatch.advising import Adviser
from deadwatch.errors import (
    ConfigError,
    MissingStepWarning,
    ResumeWarning,
    UnfinishedCourseWarning,
)
from deadwatch.judge.rules import Rules, judge
from deadwatch.observe.frames import Counting
from deadwatch.observe.reduce import alike, averaging, common_seed, largest, meet, reduce
from deadwatch.observe.remarks import tell_unseen
from deadwatch.observe.roll import Roll
from deadwatch.observe.sites import unwrapped
from deadwatch.observe.taps import Taps
from deadwatch.plain import require_version, stamped, to_plain
from deadwatch.records import Snapshot, WindowReport
from deadwatch.settings import (
    Settings,
    check_ownership,
    check_shapes,
    check_strategy,
    check_total_steps,
    optimizers_of,
    shapes_of,
)
from deadwatch.treat.clinic import Clinic
from deadwatch.treat.ledger import Ledger
from deadwatch.treat.optim import OptimizerState
from deadwatch.treat.policy import Policy, resolve


class Watch:
    """Watches the activations of a model while it trains, and treats dead units if asked to.

    Args:
        model: The model, as it is or wrapped in DDP or by `torch.compile`. Watching alone never
            changes it, nor its losses, by a single bit.
        optimizer: The optimizer or optimizers that train it; needed to treat.
        policy: A `Policy`, the name of a preset (``"watch"``, ``"gentle"``, ``"revive"``), or
            None to only watch.
        rules: Thresholds of the verdict.
        include: Patterns (as in `fnmatch`) of the activations to watch; None for all. They are
            matched against the path of an activation module (``block.relu``) or the name of a
            function (``block-relu``).
        exclude: Patterns of activations to leave out.
        unit_dim: Unit axis by pattern, where it should not be found from the data.
        stats_every_n_steps: Pre-activation statistics are taken on every n-th step of a window,
            beginning with its first. Death is judged on every step regardless. With ``"auto"``
            the first window takes them on steps 0, 1, 2, 4, 8 … and measures what they cost; from
            the next on they are taken as often as ``overhead`` allows.
        overhead: What watching may add to a training step, as a share of it, if statistics are
            taken by ``"auto"``; None for 0.02. One note of the window tells what was found.
        count_no_grad: Whether forwards in training mode but under ``no_grad`` count as well: those
            of teachers, exponential averages, and sampling passes of generators or agents.
        total_steps: Training steps of the whole run, for a policy that ends at a share of it.
        advice: Whether each window says how its dead units died, and what lets units die (see
            `advise`), and to measure what that is based on: updates, inputs, rows of weights.
        gradients: Whether to measure the loss's gradient at the pre-activations as well.
        ignore: Patterns of findings that advice leaves out, as for `advise`.

    Raises:
        ConfigError: An argument is wrong; the message says what was expected.

    Example:
        >>> watch = Watch(model, optimizer=optimizer, policy="revive")
        >>> with watch:
        ...     for epoch in range(20):
        ...         for x, y in loader:
        ...             loss = loss_function(model(x), y)
        ...             loss.backward()
        ...             optimizer.step()
        ...             optimizer.zero_grad()
        ...             watch.step(loss)
        ...         report = watch.close_window()
        ...         print(report.dead_ratio)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        policy: Policy | str | None = None,
        rules: Rules | None = None,
        include: Sequence[str] | str | None = None,
        exclude: Sequence[str] | str | None = None,
        unit_dim: Mapping[str, int] | None = None,
        stats_every_n_steps: int | Literal["auto"] = 10,
        overhead: float | None = None,
        count_no_grad: bool = False,
        total_steps: int | None = None,
        advice: bool = False,
        gradients: bool = False,
        ignore: Sequence[str] = (),
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"model is {type(model).__name__!r}; expected a torch.nn.Module to watch"
            )
        model = unwrapped(model)
        selecting = include, exclude, unit_dim
        every, switches = stats_every_n_steps, (count_no_grad, advice, gradients)
        settings = Settings(policy, rules, *selecting, every, overhead, *switches, ignore=ignore)
        self._overhead = settings.bound
        self._policy = resolve(policy)
        check_total_steps(total_steps, policy)
        self._total_steps = total_steps
        check_strategy(model, optimizer, policy)
        optimizers = optimizers_of(optimizer)
        check_ownership(model, optimizers, self._policy, policy)
        self._rules = rules or Rules()
        counting = Counting(no_grad=count_no_grad)
        self._roll = Roll()
        gauges = settings.gauging(optimizers)
        self._taps = Taps(model, settings.selection(), settings.interval, counting, gauges)
        self._model = model
        self._optimizers = OptimizerState(optimizers)
        self._adviser = Adviser(model, optimizers, settings.ignore, enabled=advice)
        self._clinic: Clinic | None = None
        self._saved_clinic: Mapping[str, Any] | None = None
        self._stepped = False
        self._closed = False

    # ── attaching ───────────────────────────────────────────────────────────────────────

    def attach(self) -> Watch:
        """Put hooks on the model; does nothing if they are on."""
        if self._policy is not None and self._clinic is None:
            check_strategy(self._model, (), self._policy)  # it may have been wrapped meanwhile
            self._clinic = Clinic(
                *(self._policy, self._model, self._optimizers, common_seed(), self._total_steps),
                *(largest, alike, self._operation, averaging()),
            )
            self._resume_clinic()
        if self._clinic is not None:
            self._clinic.attach()
        self._taps.attach()
        meet(self._roll)
        return self

    @property
    def attached(self) -> bool:
        """Whether hooks are on the model."""
        return self._taps.attached

    def detach(self) -> None:
        """Take every hook off the model; does nothing if none is on."""
        attached, clinic = self._taps.attached, self._clinic
        self._taps.detach()
        if clinic is not None:
            clinic.detach()
        units, held = clinic.held if clinic is not None else (0, 0.0)
        if attached and units:
            warnings.warn(
                f"watching ended while {units} units were being warmed or annealed: up "
                f"to {held:.3g} of what was added to their biases, or of the function they "
                "were swapped to, is still there, and stays. They were treated within hold + "
                "anneal steps of the end, or watch.step() was not called after every "
                "optimizer.step().",
                UnfinishedCourseWarning,
                stacklevel=2,
            )

    def suspend(self) -> None:
        """Take the hooks off for a while, say for an evaluation; `attach` puts them back."""
        self._taps.suspend()

    def __enter__(self) -> Watch:
        return self.attach()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._clinic is not None and not self._closed and self.steps:
            warnings.warn(
                "close_window() was never called: nothing was judged, and nothing treated; call "
                "it at the end of every epoch",
                MissingStepWarning,
                stacklevel=2,
            )
        self.detach()

    # ── while training ──────────────────────────────────────────────────────────────────

    def step(self, loss: Tensor | float | None = None) -> None:
        """Count a training step and advance scheduled remedies; call it after the optimizer's.

        Args:
            loss: The step's training loss, by which a policy's guard sees whether a treatment did
                harm. A tensor is read only after treatments, so that no step waits for it.

        Raises:
            ConfigError: ``loss`` is not one number.
        """
        self._stepped = True
        self._taps.step()
        if self._adviser.enabled and self.steps == 1:  # as near to the start as sites are known
            self._adviser.begin(self.peek())
        if self._clinic is None:
            return
        if self._clinic.prevents:
            with self._operation():
                self._clinic.prevent(self.peek(), self.steps)
        self._clinic.step(loss)
        self._taps.retake()  # the guard may have undone a treatment

    def pause(self) -> None:
        """Count no forward until `resume`."""
        self._taps.pause()

    def resume(self, *, reports_steps: bool = False) -> None:
        """Count forwards again.

        Args:
            reports_steps: True says before the first `step` that it will be called, so that calls
                of an activation by the training loop itself are numbered right from the start.
        """
        self._taps.resume(reports_steps=reports_steps)

    def forbid_swaps(self, reason: str) -> None:
        """Refuse remedies that replace modules, with this reason; call it when attached."""
        if self._clinic is not None:
            self._clinic.forbid_swaps(reason)

    @property
    def replaced(self) -> int:
        """Activation modules replaced so far, by swaps and at the end of annealed ones."""
        return self._clinic.replaced if self._clinic is not None else 0

    @property
    def steps(self) -> int:
        """Training steps so far."""
        return self._taps.steps

    @property
    def ledger(self) -> Ledger:
        """Every treatment so far, and what came of it; iterable."""
        return self._clinic.ledger if self._clinic is not None else Ledger()

    def peek(self) -> WindowReport:
        """Judge the window so far, without closing it."""
        return judge(self._measured(), self._rules)

    def _measured(self) -> Snapshot:
        return self._taps.complete(reduce(self._taps.read(), self._roll))

    def close_window(self, *, treat: bool = True) -> WindowReport:
        """Judge the window, treat what is due, and begin the next.

        Args:
            treat: False to leave the treatments to a later call of `treat`.
        """
        self._closed = True
        snapshot = self._measured()
        missed = snapshot.steps - self.steps  # a rank may have run out of data
        pace = self._taps.find_interval(self._overhead, largest)
        self._taps.restart(snapshot)
        verdict = judge(snapshot, self._rules)
        verdict = replace(verdict, notes=(*verdict.notes, *pace))
        tell_unseen(verdict, snapshot.missing, attached=self.attached)
        verdict = self._adviser.advise(verdict)
        if self._clinic is None:
            return verdict
        if missed > 0:
            self._clinic.follow(missed)
        else:
            self._warn_missing_step()
        self._stepped = False
        self._clinic.consider(verdict, self.steps)
        notes = (*verdict.notes, *self._clinic.told())
        verdict = replace(verdict, notes=notes, outcomes=self._clinic.outcomes)
        return self.treat(verdict) if treat else verdict

    def treat(self, verdict: WindowReport) -> WindowReport:
        """Apply the treatments that the last window called for.

        Call it between an optimizer step and the next forward: parameters change in place.

        Returns:
            The verdict, with what was done and what could not be.
        """
        if self._clinic is None or not self._clinic.due:
            return verdict
        with self._operation():
            treatments, refusals = self._clinic.treat(verdict, self.steps)
        for treatment in treatments:
            self._taps.forget(treatment.site, treatment.units)
            self._adviser.interrupt()
        return replace(
            verdict,
            treatments=treatments,
            refusals=refusals,
            notes=(*verdict.notes, *self._clinic.told()),
            outcomes=self._clinic.outcomes,
        )

    @contextmanager
    def _operation(self) -> Iterator[None]:
        """Nothing of ours is on the model while it is operated on."""
        attached = self._taps.attached
        self._taps.suspend()
        try:
            yield
        finally:
            if self._taps.outdated:
                self._taps.detach()
            if attached:
                self._taps.attach()

    # ── checkpoints ─────────────────────────────────────────────────────────────────────

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on as if it had not been interrupted.

        Save it with the model's and the optimizer's, between two steps. It holds plain values and
        tensors only, so that ``torch.load(..., weights_only=True)`` reads it. In distributed
        training call it on every rank, as `close_window`; all get the same.
        """
        flow = {"stepped": self._stepped, "closed": self._closed}
        clinic = None if self._clinic is None else to_plain(self._clinic.state_dict())
        shapes = shapes_of(self._model)
        slopes = self._optimizers.homes(slopes_of(self._model))
        # Each rank has seen other data and other losses; all else is the same on all of them.
        ranks = self._taps.gather(self._roll, {"trial": clinic and clinic.pop("trial")})
        model = {"shapes": shapes, "slopes": slopes}
        advice = self._adviser.state_dict()
        return stamped({"flow": flow, "ranks": ranks, "clinic": clinic, "advice": advice, **model})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the run stood whose `state_dict` this is, on any number of processes.

        Call it before the first forward, on a new `Watch` with the same arguments. The model must
        have been loaded before; load its optimizer afterwards, for only then the slopes of a PReLU
        swap are where they were in its parameter groups, whatever these are.

        Raises:
            DeadwatchError: The state was not saved by this version of deadwatch; or with a policy,
                and the model has not been loaded or is another; or the optimizer was loaded too
                early; or forwards have been counted already.
        """
        require_version(state)
        if self._policy is not None and state["clinic"] is not None:
            check_shapes(self._model, state["shapes"])
        self._optimizers.rehome(slopes_of(self._model), state["slopes"])
        own = self._taps.share_out(state["ranks"])
        self._stepped, self._closed = state["flow"]["stepped"], state["flow"]["closed"]
        self._adviser.load_state_dict(state["advice"])
        if state["clinic"] is not None:  # copied: the caller keeps what it gave
            self._saved_clinic = to_plain({**state["clinic"], "trial": own["trial"]})
        self._resume_clinic()

    def _resume_clinic(self) -> None:
        """Hand the clinic its saved state as soon as there are both."""
        if self._policy is None and self._saved_clinic is not None:
            count = len(self._saved_clinic["ledger"])
            warnings.warn(
                f"the state is that of a run with a policy, and this Watch has no policy: what "
                f"became of {count} treatments is left out, and schedules in progress end here",
                ResumeWarning,
                stacklevel=3,
            )
            self._saved_clinic = None
        if self._clinic is not None and self._saved_clinic is not None:
            self._clinic.load_state_dict(self._saved_clinic)
            self._clinic.attach()
            self._saved_clinic = None

    def _warn_missing_step(self) -> None:
        assert self._clinic is not None
        if self._clinic.in_course and not self._stepped:
            warnings.warn(
                "a remedy is being annealed, but watch.step() was not called in this window; call "
                "it after every optimizer.step()",
                MissingStepWarning,
                stacklevel=3,
            )
