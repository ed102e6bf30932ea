"""Processes that come from one which has imported torch already: importing takes longest."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence


def in_forks(calls: Sequence[Callable[[], object]]) -> list[int]:
    """Make each call in a process of its own, all at once; returns their exit codes.

    To be called where torch has no threads yet, that is in a process made for it.
    """
    children = [_forked(call) for call in calls]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _forked(call: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        call()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # gloo's own threads now and then abort an orderly exit
