"""Contract tests for functions and classes that another process can, or cannot, find again."""

from __future__ import annotations

import pickle
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from fdpool.kernel import EventFd
from fdpool.memory import functions
from fdpool.memory.functions import Unimportable, check_importable, main_module, main_origin, set_main_loader
from fdpool.memory.pickling import pack
from tests.support.delivery import deliver, travel

if TYPE_CHECKING:
    from collections.abc import Callable


def by_name(x: int) -> int:
    return x + 1


class Class:
    @staticmethod
    def static() -> str:
        return "static"

    @classmethod
    def of_class(cls) -> str:
        return cls.__name__

    def method(self) -> str:
        return "method"


@pytest.fixture
def no_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)


@pytest.fixture
def cloudpickle() -> None:
    pytest.importorskip("cloudpickle")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that no file is behind, with a function and a class in it."""
    module = ModuleType("made_up")
    exec("def function(): return 'made up'\nclass Class: pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "made_up", module)
    return module


def lambdas_and_closures() -> list[Callable[[], int]]:
    x = 7

    def closure() -> int:
        return x

    return [lambda: 7, lambda: x, closure]


@pytest.mark.usefixtures("no_cloudpickle")
@pytest.mark.parametrize("value", [by_name, Class, Class.static, Class.of_class, len, pickle.dumps, pytest.raises])
def test_what_a_module_holds_travels_by_name(value: Any) -> None:
    assert travel(value) == value


@pytest.mark.usefixtures("no_cloudpickle")
def test_a_method_travels_with_its_object() -> None:
    assert travel(Class().method)() == "method"


@pytest.mark.usefixtures("no_cloudpickle")
@pytest.mark.parametrize("index", range(3))
def test_lambdas_and_closures_are_refused_with_a_hint_at_the_extra(index: int) -> None:
    with pytest.raises((pickle.PicklingError, AttributeError), match=r"lambda|local object") as caught:
        pack([lambdas_and_closures()[index]])
    assert caught.value.__notes__ == [
        "lambdas, closures and functions typed at a prompt travel with: pip install 'fdpool[cloudpickle]'"
    ]


@pytest.mark.usefixtures("cloudpickle")
@pytest.mark.parametrize("index", range(3))
def test_lambdas_and_closures_travel_with_cloudpickle(index: int) -> None:
    assert travel([lambdas_and_closures()[index]])[0]() == 7


@pytest.mark.usefixtures("cloudpickle")
def test_what_a_closure_holds_travels_as_anything_does() -> None:
    big = bytearray(200_000)
    with EventFd() as event:
        packed = pack(lambda: (big, memoryview(big), event))
        assert (len(packed.handles), len(packed.tail) < 10_000) == (1, True)
        packed.close()
        arrived, view, moved = travel(lambda: (big, memoryview(big), event))()
        with moved:
            moved.write(2)
            assert event.read() == 2
        assert arrived == view == big


@pytest.mark.usefixtures("no_cloudpickle")
@pytest.mark.parametrize("name", ["function", "Class"])
def test_what_is_in_a_module_made_at_run_time_is_refused(made_up: ModuleType, name: str) -> None:
    with pytest.raises(Unimportable, match=f"{name} is defined in made_up, a module made at run time that has no file"):
        pack(getattr(made_up, name))


@pytest.mark.usefixtures("cloudpickle")
@pytest.mark.parametrize("name", ["function", "Class"])
def test_what_is_in_a_module_made_at_run_time_is_refused_by_cloudpickle_too(made_up: ModuleType, name: str) -> None:
    # It would name the module, which the other process does not have.
    with pytest.raises(Unimportable, match=f"{name} is defined in made_up"):
        pack({"deep": getattr(made_up, name)})


@pytest.mark.usefixtures("cloudpickle")
def test_a_class_defined_in_a_function_travels_with_cloudpickle() -> None:
    class Local:
        def method(self) -> str:
            return "local"

    assert travel(Local)().method() == "local"


@pytest.mark.parametrize("value", [3, "text", None, by_name, len, [by_name]])
def test_other_values_are_not_asked_where_they_are_from(value: Any) -> None:
    check_importable(value)


# The running script.


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("__main__")
    exec("def in_main(): return 'main'", module.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


@pytest.mark.parametrize("path", [None, "<stdin>"])
def test_a_prompt_has_no_origin_and_its_functions_need_cloudpickle(
    main: ModuleType, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path is not None:
        main.__file__ = path
    assert main_origin() == (None, None)
    with pytest.raises(Unimportable, match="in_main is defined in a __main__ without a file"):
        check_importable(main.in_main)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cloudpickle", None)
        with pytest.raises(Unimportable) as caught:
            pack(main.in_main)
        assert "cloudpickle" in caught.value.__notes__[0]


@pytest.mark.usefixtures("cloudpickle")
def test_a_function_typed_at_a_prompt_travels_by_value(main: ModuleType) -> None:
    packed = pack(main.in_main)
    assert b"in_main" in packed.tail
    del main.in_main
    assert deliver(packed).open()() == "main"


def test_a_script_is_found_by_its_path_and_a_module_by_its_name(main: ModuleType) -> None:
    main.__file__ = "/some/script.py"
    assert main_origin() == (None, "/some/script.py")
    check_importable(main.in_main)
    main.__spec__ = ModuleSpec("package.module", None)
    assert main_origin() == ("package.module", None)


def test_the_script_is_loaded_when_something_of_it_arrives(main: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    main.__file__ = str(Path(__file__))
    packed = pack(main.in_main)
    was_loading = []
    fresh = ModuleType("__main__")

    def load() -> None:
        was_loading.append(functions.is_loading_main)
        exec("def in_main(): return 'loaded'", fresh.__dict__)
        sys.modules["__main__"] = fresh

    monkeypatch.setattr(functions, "_load_main", None)
    assert main_module() == "__main__"
    assert was_loading == []
    set_main_loader(load)
    assert deliver(packed).open()() == "loaded"
    assert was_loading == [True]
    assert not functions.is_loading_main


def test_a_script_that_fails_to_load_is_not_loading_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(functions, "_load_main", load)
    with pytest.raises(ZeroDivisionError):
        main_module()
    assert not functions.is_loading_main
