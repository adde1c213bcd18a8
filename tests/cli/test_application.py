from __future__ import annotations

from pathlib import Path

import pytest

from tq_broker.activity import definition_of
from tq_broker.cli.application import load_application
from tq_broker.exceptions import InvalidArgument


def test_a_module_gives_all_its_activities(app: str) -> None:
    loaded = load_application(app)
    assert loaded.types == ("add", "fail")
    assert loaded.task_queues == ("math",)
    found = loaded.find("add")
    assert found is not None
    assert definition_of(found).name == "add"
    assert loaded.find("none") is None


def test_an_attribute_gives_what_it_lists(app: str) -> None:
    assert load_application(f"{app}:some").types == ("add",)
    assert load_application(f"{app}:fail").types == ("fail",)


def test_a_mapping_gives_worker_options_too(app: str) -> None:
    loaded = load_application(f"{app}:options")
    assert loaded.types == ("add",)
    assert loaded.task_queues == ("own",)
    assert loaded.options == {"max_concurrent_activities": 7}


MORE = """
class Store:
    @activity.defn
    def put(self, key: str) -> None: ...

    @property
    def explodes(self) -> None:
        raise AssertionError

store = Store()
bad_option = {"activites": []}
text = "x"
number = 3
undecorated = [len]
none = []
one_queue = {"activities": [add], "task_queues": "math"}
bad_converter = {"activities": [add], "data_converter": 3}
class nested:
    inner = [add]

@workflow.defn
class Flow:
    @workflow.run
    async def run(self) -> None: ...

@workflow.defn(dynamic=True)
class Any:
    @workflow.run
    async def run(self, args: list[workflow.RawValue]) -> None: ...

both = [add, Flow]
flows = {"workflows": [Flow], "task_queue": "f"}
no_flow = {"workflows": [nested], "task_queue": "f"}
"""


@pytest.fixture
def more(app: str, tmp_path: Path) -> str:
    file = tmp_path / f"{app}.py"
    file.write_text("from tq_broker import workflow\n" + file.read_text() + MORE)
    return app


def test_an_instance_gives_its_methods(more: str) -> None:
    loaded = load_application(f"{more}:store")
    assert loaded.types == ("put",)
    assert load_application(f"{more}:nested.inner").types == ("add",)


def test_workflows_are_found_beside_activities(more: str) -> None:
    assert load_application(more).workflow_types == ("*", "Flow")
    assert load_application(f"{more}:Flow").workflow_types == ("Flow",)
    both = load_application(f"{more}:both")
    assert (both.types, both.workflow_types) == (("add",), ("Flow",))
    flows = load_application(f"{more}:flows")
    assert (flows.types, flows.workflow_types, flows.task_queues) == ((), ("Flow",), ("f",))


@pytest.mark.parametrize(
    ("attribute", "match"),
    [
        ("somee", "has no 'somee', did you mean 'some'"),
        ("bad_option", "unknown worker option 'activites', did you mean 'activities'"),
        ("text", "is a text"),
        ("number", "is a int; it must be a list"),
        ("undecorated", "len is not an activity"),
        ("none", "has no activities"),
        ("no_flow", "is not decorated with @workflow.defn"),
        ("one_queue", "task_queues must be a list"),
        ("bad_converter", "data_converter must be a DataConverter"),
    ],
)
def test_what_is_wrong_is_said(more: str, attribute: str, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        load_application(f"{more}:{attribute}")


def test_a_missing_module_is_answered_with_a_near_one(app: str) -> None:
    with pytest.raises(InvalidArgument, match=f"did you mean '{app}'"):
        load_application(app[:-1])
    with pytest.raises(InvalidArgument, match="there is no module"):
        load_application(f"{app}.sub")
    with pytest.raises(InvalidArgument, match=f"write the module's name: -A {app}$"):
        load_application(f"./{app}.py")
    with pytest.raises(InvalidArgument, match="write MODULE"):
        load_application(":x")


def test_a_module_that_raises_is_one_line(app: str, tmp_path: Path) -> None:
    (tmp_path / "broken_one.py").write_text("x = 1\nraise ValueError('no')\n")
    with pytest.raises(InvalidArgument, match=r"ValueError: no \(.*broken_one.py, line 2\)"):
        load_application("broken_one")
    (tmp_path / "broken_two.py").write_text("import not_there_at_all\n")
    with pytest.raises(InvalidArgument, match="cannot be imported: ModuleNotFoundError"):
        load_application("broken_two")
    (tmp_path / "broken_three.py").write_text("def f(:\n")
    with pytest.raises(InvalidArgument, match="cannot be imported: SyntaxError"):
        load_application("broken_three")
