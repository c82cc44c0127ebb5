"""Contract tests for warning filters as they travel."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from fdpool.protocol.warning_filters import NotLoaded, Told, rebuild_filters, tell_filters

if TYPE_CHECKING:
    from collections.abc import Iterator


class Own(UserWarning):
    class Nested(UserWarning):
        pass


@pytest.fixture(autouse=True)
def filters() -> Iterator[list[Any]]:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        yield warnings.filters  # type: ignore[misc]


def there_and_back() -> list[Any]:
    return rebuild_filters(pickle.loads(pickle.dumps(tell_filters(warnings.filters))))


def test_filters_come_out_as_they_went_in(filters: list[Any]) -> None:
    warnings.simplefilter("error", ResourceWarning)
    warnings.filterwarnings("ignore", "a (message|text)", Own, r"some\.module", 7)
    warnings.filterwarnings("once", category=Own.Nested, append=True)
    filters.append(("module", "exactly this", UserWarning, "exactly.there", 0))
    assert there_and_back() == filters
    assert len(filters) == 4


def test_a_category_that_nobody_else_could_find_is_left_out(filters: list[Any]) -> None:
    class Local(UserWarning):
        pass

    warnings.simplefilter("error", Local)
    warnings.simplefilter("error", Own)
    assert [category for _, _, category, _, _ in there_and_back()] == [Own]
    assert len(filters) == 2


def test_a_category_counts_from_when_its_module_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Told] = [("error", None, ("made_up.module", "Careful.Very"), None, 0)]
    [(_, _, category, _, _)] = rebuilt = rebuild_filters(told)
    assert isinstance(category, NotLoaded)
    assert rebuild_filters(told) == rebuilt
    warnings.filters.extend(rebuilt)  # type: ignore[attr-defined]
    with warnings.catch_warnings(record=True) as seen:
        warnings.warn("not of that category", UserWarning, stacklevel=1)
    assert len(seen) == 1

    module = ModuleType("made_up.module")
    monkeypatch.setitem(sys.modules, "made_up.module", module)
    assert not issubclass(UserWarning, category)
    vars(module)["Careful"] = Own
    monkeypatch.setattr(Own, "Very", Own.Nested, raising=False)
    with pytest.raises(Own.Nested, match="it is"):
        warnings.warn("it is", Own.Nested, stacklevel=1)
    # And it can be passed on.
    assert tell_filters(rebuilt) == told


@pytest.mark.parametrize("option", [None, "-Wdefault::DeprecationWarning:__main__"])
def test_what_holds_for_the_script_holds_for_it_as_workers_load_it(option: str | None) -> None:
    told = subprocess.run(
        [sys.executable, *filter(None, [option]), "-c", """if True:
            import pickle, sys, warnings
            from fdpool.protocol.warning_filters import tell_filters
            sys.stdout.buffer.write(pickle.dumps(tell_filters(warnings.filters)))"""],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    warnings.filters[:] = rebuild_filters(pickle.loads(told))  # type: ignore[index]
    for name in ("__main__", "__mp_main__"):
        with pytest.warns(DeprecationWarning, match=name):
            warnings.warn_explicit(name, DeprecationWarning, "script.py", 1, module=name)
    with warnings.catch_warnings(record=True) as seen:
        warnings.warn_explicit("elsewhere", DeprecationWarning, "module.py", 1, module="module")
    assert seen == []


def test_telling_filters_of_a_script_does_not_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class StandIn(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was asked for")

    monkeypatch.setitem(sys.modules, "__main__", StandIn("__main__"))
    told: list[Told] = [("error", None, (main, "Careful"), None, 0) for main in ("__main__", "__mp_main__")]
    for _, _, category, _, _ in rebuild_filters(told):
        assert not issubclass(UserWarning, category)
    vars(sys.modules["__main__"])["Careful"] = Own
    for _, _, category, _, _ in rebuild_filters(told):
        assert category is Own
