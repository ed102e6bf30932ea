"""The house rules that a tool can check: layers, single homes, public surface, lazy import."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import deadwatch

PACKAGE = Path(deadwatch.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part may import, besides itself. Imports point strictly down; stages are siblings.
GROUND = {"errors", "records", "plain", "activations"}
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "records": {"errors"},
    "plain": {"errors", "records"},
    "activations": {"errors"},
    "observe": GROUND,
    "judge": GROUND,
    "treat": GROUND,
    "show": GROUND,
    "settings": GROUND | {"observe", "judge", "treat"},
    "watch": GROUND | {"observe", "judge", "treat", "show", "settings", "advising"},
    "advising": GROUND | {"observe", "judge", "treat", "settings"},
    "scanning": GROUND | {"observe", "judge", "treat", "settings", "watch", "advising"},
    "factories": GROUND,
    "checking": GROUND | {"judge", "scanning", "advising", "factories"},
    "cli": GROUND | {"show", "checking", "__version__"},
    "__main__": {"cli"},
    "restoring": GROUND | {"treat"},
    "fusing": GROUND | {"treat"},
    "trainers": GROUND | {"restoring"},
    "lightning": GROUND
    | {"observe", "judge", "treat", "show", "settings", "watch", "restoring", "trainers"},
    "__init__": GROUND
    | {"observe", "judge", "treat", "show", "watch", "scanning", "restoring", "fusing", "advising"}
    | {"lightning"},
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Every module of this package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [node.module or ""]
            if node.module == "deadwatch":
                names = [f"deadwatch.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "deadwatch")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_strictly_down(path: Path) -> None:
    part = part_of(path)
    for name in imports(path):
        imported = name.split(".")[1]
        assert imported == part or imported in LAYERS[part], f"{path.name} imports {name}"


def test_the_layer_check_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from deadwatch.treat import policy\n    import deadwatch.watch\n")
    assert [name.split(".")[1] for name in imports(bad)] == ["treat", "watch"]
    assert not {"treat", "watch"} & LAYERS["observe"]


def calls(path: Path) -> set[str]:
    """Names of all attributes and functions a file uses."""
    tree = ast.parse(path.read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


SINGLE_HOMES = {
    "hooks": ("observe/taps.py", {"register_forward_hook", "register_forward_pre_hook"}),
    "function modes": ("observe/listen.py", {"TorchFunctionMode"}),
    "collectives": (
        "observe/reduce.py",
        {"all_reduce", "all_gather", "all_gather_object", "broadcast", "barrier"}
        | {"broadcast_object_list", "gather_object", "reduce_scatter_tensor"},
    ),
    "gathering of sharded parameters": ("treat/shards.py", {"full_tensor", "redistribute"}),
    "parameter writes": ("treat/surgery.py", {"index_copy_"}),
    "optimizer writes": ("treat/optim.py", {"param_groups"}),
}


@pytest.mark.parametrize("act", SINGLE_HOMES)
def test_dangerous_acts_have_a_single_home(act: str) -> None:
    home, names = SINGLE_HOMES[act]
    allowed = {PACKAGE / home}
    if act == "parameter writes":
        allowed.add(PACKAGE / "treat/optim.py")  # writes slices of its own state
    if act == "optimizer writes":
        allowed.add(PACKAGE / "settings.py")  # reads whose parameters they are
        allowed.add(PACKAGE / "treat/decay.py")  # regroups parameters while a step runs
    if act == "gathering of sharded parameters":
        allowed.add(PACKAGE / "activations.py")  # their own, to try them out
    assert names & calls(PACKAGE / home), f"{home} no longer does this"
    for path in set(FILES) - allowed:
        assert not names & calls(path), f"{path.relative_to(PACKAGE)}: {act} belong in {home}"


def test_only_surgery_and_optim_change_tensors_in_place_under_treat() -> None:
    for path in (PACKAGE / "treat").rglob("*.py"):
        if path.name in ("surgery.py", "optim.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                inplace = node.attr[-1] == "_" != node.attr[0] and hasattr(torch.Tensor, node.attr)
                assert not inplace or node.attr == "fill_", f"{path.name}: {node.attr}"


WAITS = {"item", "tolist", "cpu", "numpy", "synchronize", "nonzero"}
MAY_WAIT = {  # once a window, once a site, or once a kind of activation
    *("fetch", "adopt", "_all_reduce", "common_seed", "measure_gate", "_largest", "_seconds"),
    "_rms",
}


def test_no_hook_waits_for_the_device() -> None:
    """Functions that are not named above hold no operation that moves data to the host."""
    for path in (PACKAGE / "observe").rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and function.name not in MAY_WAIT:
                used = {n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute)}
                assert not used & WAITS, f"{path.name}: {function.name} uses {used & WAITS}"


def test_the_public_names() -> None:
    assert deadwatch.__all__ == sorted(deadwatch.__all__)
    for name in deadwatch.__all__:
        assert getattr(deadwatch, name).__name__ == name
        assert inspect.getdoc(getattr(deadwatch, name)), name
    assert set(deadwatch.__all__) <= set(dir(deadwatch))
    assert set(deadwatch._HOME_OF) == set(deadwatch.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'deadwatch' has no attribute 'nothing'"):
        deadwatch.nothing  # noqa: B018


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_package_imports_neither_torch_nor_lightning() -> None:
    heavy = "('torch', 'lightning', 'pytorch_lightning', 'numpy', 'tensorboard')"
    code = f"import deadwatch, sys; print([m for m in {heavy} if m in sys.modules])"
    assert run(code) == "[]"


def test_records_and_views_do_without_torch() -> None:
    code = (
        "import sys; from deadwatch import WindowReport, TensorBoardView; "
        "print('torch' in sys.modules)"
    )
    assert run(code) == "False"


def test_watch_does_without_lightning() -> None:
    code = "import sys; from deadwatch import Watch; print('pytorch_lightning' in sys.modules)"
    assert run(code) == "False"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    if "import" in path.read_text():
        assert '"""' in path.read_text().splitlines()[0], "opens with what it is for"


def test_nothing_swallows_exceptions_silently() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None
                assert not all(isinstance(line, ast.Pass) for line in node.body), path
