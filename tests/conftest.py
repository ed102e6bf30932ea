"""Fixtures that several files of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from deadwatch import DeadwatchWarning
from tests.agreement import one_thread


@pytest.fixture
def nothing_stays_behind(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    with one_thread():
        yield
    assert torch._C._len_torch_function_stack() == 0
    assert not [w for w in recwarn if issubclass(w.category, DeadwatchWarning)]
