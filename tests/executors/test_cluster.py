"""Groups on a cluster: every item is reported once or has failed by name, whichever workers die, and when."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_bench.executors.cluster import ATTEMPTS, Cluster, ClusterError, Failure, Group, Ledger
from references.ray import Ray, RayError

NODE = {"CPU": 4.0, "GPU": 1.0}


def joined(ray: Ray, **asked: Any) -> Cluster:
    """A cluster of the one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", ray)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "1")
        return Cluster(**({"address": None, "gpu": False, "cpus": 1} | asked))


def reports(cluster: Cluster, ray: Ray, groups: Sequence[Group], run: Any) -> dict[str, Any]:
    """What is reported of the items of all groups, asked for in their order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", ray)
        cluster.start(groups, run)
        found = {item: cluster.report(item) for group in groups for item in group.items}
        cluster.close()
    return found


@st.composite
def mortal_groups(draw: st.DrawFn) -> tuple[list[Group], dict[str, int]]:
    """Groups, two of which may be of one model, and how many workers die in an item before one survives it."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    groups = [Group(f"m{i // 2}", tuple(f"m{i // 2}-{i}-{k}" for k in range(n))) for i, n in enumerate(sizes)]
    items = [item for group in groups for item in group.items]
    return groups, draw(st.dictionaries(st.sampled_from(items), st.integers(1, 5)))


@given(mortal_groups(), st.data())
def test_every_item_is_reported_once_or_has_ended_workers(
    mortal: tuple[list[Group], dict[str, int]], data: st.DataObject
) -> None:
    groups, lives = mortal
    lives = dict(lives)
    ran: list[str] = []
    sent: list[tuple[str, ...]] = []

    def run(items: Sequence[str], say: Any) -> str:
        sent.append(tuple(items))
        for item in items:
            if lives.get(item, 0):
                lives[item] -= 1
                raise RayError("the worker died")
            ran.append(item)
            say(item, f"report of {item}")
        return ""

    ray = Ray([NODE], lambda count: data.draw(st.integers(0, count - 1)))
    cluster = joined(ray)
    found = reports(cluster, ray, groups, run)
    failed = {item for item, report in found.items() if isinstance(report, Failure)}
    assert {item: report for item, report in found.items() if item not in failed} == {
        item: f"report of {item}" for item in ran
    }
    assert max(Counter(ran).values(), default=1) == 1
    assert not failed & set(ran)
    deaths = {item: count - lives[item] for item, count in mortal[1].items() if count > lives[item]}
    assert cluster.deaths == sum(deaths.values())
    assert cluster.ledger.tasks == len(sent)
    assert all(count <= ATTEMPTS for count in deaths.values())
    # none is given up but those in which many died, and models of which nothing has ever finished
    barren = {item for item in failed if deaths.get(item, 0) < ATTEMPTS}
    for model in {item.partition("-")[0] for item in barren}:
        assert sum(count for item, count in deaths.items() if item.startswith(f"{model}-")) >= ATTEMPTS
    for item in failed:
        words = f"{deaths[item]} worker(s) died in it" if item in deaths else "not run: "
        assert found[item].text.startswith(words)
    assert ray.shut_down == 1


def test_an_item_that_survives_is_counted_as_begun_again() -> None:
    lives = {"b": 2}

    def run(items: Sequence[str], say: Any) -> str:
        for item in items:
            if lives.get(item, 0):
                lives[item] -= 1
                raise RayError("the worker died")
            say(item, item)
        return ""

    ray = Ray([NODE])
    cluster = joined(ray)
    assert reports(cluster, ray, [Group("m", ("a", "b", "c"))], run) == {"a": "a", "b": "b", "c": "c"}
    assert (cluster.deaths, cluster.ledger.deaths, cluster.ledger.again) == (2, {"b": 2}, {"b"})
    assert cluster.ledger.tasks == 3


def test_what_a_task_could_not_run_fails_and_says_why() -> None:
    def run(items: Sequence[str], say: Any) -> str:
        if items == ("x",):
            raise ModuleNotFoundError("No module named 'mae_bench'")
        say(items[0], "done")
        return "the session ended"

    ray = Ray([NODE])
    found = reports(joined(ray), ray, [Group("m", ("a", "b")), Group("n", ("x",))], run)
    assert found["a"] == "done"
    assert found["b"] == Failure("the session ended")
    assert found["x"] == Failure("its task raised ModuleNotFoundError(\"No module named 'mae_bench'\")")


def test_a_cluster_that_has_gone_is_named_with_what_can_be_done() -> None:
    class Gone(Ray):
        def wait(self, *_: Any, **__: Any) -> Any:
            raise RayError("the head node died\nand more")

    ray = Gone([NODE])
    cluster = joined(ray, address="auto")
    with pytest.raises(ClusterError, match=r"auto has gone \(the head node died\).*--mae-resume"):
        reports(cluster, ray, [Group("m", ("a",))], lambda *_: "")


@pytest.mark.parametrize(
    ("gpu", "cpus", "nodes", "words"),
    [
        (True, 1, [{"CPU": 64.0}], ["1 CPU and 1 GPU", "64 CPUs, 0 GPUs", "--mae-device cpu"]),
        (False, 8, [{"CPU": 4.0}, {"CPU": 6.0}], ["8 CPUs", "4 CPUs, 0 GPUs; 6 CPUs, 0 GPUs", "--mae-ray-cpus"]),
        # what no single node has, nodes do not have together
        (True, 2, [{"CPU": 1.0, "GPU": 4.0}, {"CPU": 64.0}], ["2 CPUs and 1 GPU"]),
        (None, 1, [], ["1 CPU on one node"]),
    ],
)
def test_what_a_cluster_can_never_do_is_refused_before_it_waits(
    gpu: bool | None, cpus: int, nodes: list[dict[str, float]], words: list[str]
) -> None:
    ray = Ray(nodes)
    with pytest.raises(ClusterError) as raised:
        joined(ray, gpu=gpu, cpus=cpus)
    assert all(word in str(raised.value) for word in words), raised.value
    assert ray.shut_down == 1


@pytest.mark.parametrize(
    ("gpu", "nodes", "gpus", "at_once"),
    [(None, [NODE, NODE], 1, 2), (None, [{"CPU": 4.0}], 0, 4), (False, [NODE], 0, 4), (True, [NODE], 1, 1)],
)
def test_a_task_has_a_gpu_of_its_own_where_there_are_some_and_a_core_elsewhere(
    gpu: bool | None, nodes: list[dict[str, float]], gpus: int, at_once: int
) -> None:
    ray = Ray(nodes)
    cluster = joined(ray, gpu=gpu)
    assert cluster.at_once == at_once
    reports(cluster, ray, [Group("m", ("a",))], lambda items, say: say(items[0], 1) or "")
    assert ray.options[-1] == {"num_cpus": 1, "num_gpus": gpus, "max_retries": 0}


def test_nobody_is_told_and_nothing_is_shown_by_the_cluster_that_is_started_here() -> None:
    ray = Ray([NODE])
    joined(ray)
    ((place, options),) = ray.began
    assert (place, options["include_dashboard"], options["log_to_driver"]) == ("local", False, False)
    assert options["usage_statistics"] == "0"
    joined(ray, address="auto")
    assert ray.began[1][0] == "auto"
    assert "include_dashboard" not in ray.began[1][1]


def test_a_cluster_that_cannot_be_joined_is_named() -> None:
    class Nowhere(Ray):
        def init(self, *_: str, **__: Any) -> None:
            raise ConnectionError("nobody answers")

    with pytest.raises(ClusterError, match=r"--mae-ray-address auto \(nobody answers\).*ray start --head"):
        joined(Nowhere([NODE]), address="auto")
    # Ray itself would look for minutes
    ray = Ray([NODE])
    for address, why in (("127.0.0.1:9", "refused"), ("somewhere", "HOST:PORT")):
        with pytest.raises(ClusterError, match=rf"--mae-ray-address {address} \(.*{why}"):
            joined(ray, address=address)
    assert ray.began == []


def test_ray_is_asked_for_by_name_where_it_is_missing() -> None:
    with pytest.raises(ClusterError, match=r"pip install 'mae-bench\[cluster\]'"):
        joined(None)  # type: ignore[arg-type]


def test_what_another_task_still_works_on_is_given_up_by_nobody() -> None:
    """A node with three of the five tasks goes down."""
    ledger = Ledger()
    tasks = [ledger.begin(Group("m", ("a",))) for _ in range(ATTEMPTS + 2)]
    again = []
    for task in tasks[:ATTEMPTS]:
        more, given_up = ledger.die(task)
        assert given_up == {}
        again += [more] * (more is not None)
    assert again == [Group("m", ("a",))] * (ATTEMPTS - 1)
    ledger.finish(tasks[-1], "a")
    assert ledger.deaths == {"a": ATTEMPTS}
    more, given_up = ledger.die(tasks[-2])  # the last that has it: who asks for it now has its report already
    assert more is None
    assert list(given_up) == ["a"]
