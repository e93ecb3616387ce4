"""Three nodes on a Redis, and on a NATS: what is asked of one reaches the others, and what breaks is told, never hidden.

PENSTOCK_FAULTS=200 has so many of them on each; the seed is printed, and PENSTOCK_SEED repeats it. PENSTOCK_PAUSE_S=10 has
what is paused or away be so for up to that long.
"""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Awaitable, Callable

import cluster as clusters
import httpx2
import trio
from cluster import SETTLED_S, Cluster, Node, until
from cluster_node import GRACE_S, PAUSE_S
from viewers import SseViewer, Viewer, WebSocketViewer, check, settled, until_shown

from nats_server import NatsServer

FAULTS = int(os.environ.get("PENSTOCK_FAULTS", "3"))

node_nursery, machines, cluster = clusters.node_nursery, clusters.machines, clusters.cluster


async def _posted(node: Node, chat: str, words: str, answers: list[str]) -> None:
    try:
        answers.append(await node.post(chat, words))
    except httpx2.HTTPError:
        pass


async def approval_of(node: Node, chat: str) -> str:
    """Wait for what a producer asks, and return its id."""
    found: list[str] = []

    async def asked() -> bool:
        found[:] = re.findall(r'"approval":\{"id":"(\w+)"', (await node.ask("GET", chat)).text)
        return bool(found)

    await until(asked)
    return found[0]


async def test_any_node_takes_any_request(cluster: Cluster) -> None:
    a, b, c = cluster.nodes
    dice = random.Random(1)

    async with trio.open_nursery() as nursery:
        # Who watches before anything began is shown it, from whichever node.
        early: list[Viewer] = [SseViewer([b], "one", dice), WebSocketViewer([c], "one", dice)]
        for viewer in early:
            nursery.start_soon(viewer.run)
        await trio.sleep(0.3)
        posted: list[str] = []
        nursery.start_soon(_posted, a, "one", "count 500 0.01", posted)
        await until_shown(early, 20)
        late = SseViewer([c], "one", dice)
        nursery.start_soon(late.run)
        await trio.sleep(0.2)
        began = trio.current_time()
        assert (await c.ask("POST", "one/stop", {"reason": "enough"})).json() == {"state": "stopped"}
        assert trio.current_time() - began < 0.5, "the owner has heard of it"
    turn = await settled([b], "one")
    assert turn is not None
    assert turn["position"].split(".")[-1].startswith("1-"), "the owner ended it itself"
    await check([b], "one", turn, [*early, late], posted)
    assert '"type":"abort"' in posted[0]
    assert "enough" in posted[0]
    assert all(viewer.seen[0] is None and None not in viewer.seen[1:] for viewer in early)

    # A question that a producer waits for is answered on another node, once.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_posted, a, "two", "ask", posted)
        path = f"two/approvals/{await approval_of(b, 'two')}"
        assert (await b.ask("POST", "two/approvals/none", {"approved": True})).status_code == 404
        said = await b.ask("POST", path, {"approved": True, "reason": "go"})
        assert (said.status_code, said.text) == (200, '{"decision":"approved"}')
        assert (await c.ask("POST", path, {"approved": False})).status_code in (404, 409)
    assert '"why":"go"' in posted[1]


async def test_an_owner_that_does_not_stop_is_overruled_and_refused(cluster: Cluster) -> None:
    a, b, _ = cluster.nodes
    posted: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_posted, a, "stubborn", "count 1000 0.01", posted)

        async def begun() -> bool:
            answer = await b.ask("GET", "stubborn")
            return answer.status_code == 200 and answer.json()["turn"]["position"] is not None

        await until(begun)
        a.signal(signal.SIGSTOP)
        began = trio.current_time()
        stopped = await b.ask("POST", "stubborn/stop")
        assert stopped.json()["state"] in ("stopped", "lost")
        assert trio.current_time() - began < 2.5
        turn = await settled([b], "stubborn")
        a.signal(signal.SIGCONT)
    assert turn is not None
    await trio.sleep(0.3)
    assert await settled([b], "stubborn") == turn
    await check([b], "stubborn", turn, [], posted)


async def test_without_a_journal_a_node_waits_for_it_and_says_so(cluster: Cluster) -> None:
    a, b, _ = cluster.nodes
    health = "../../health"
    cluster.engine.kill()
    a.kill()
    await a.start()  # it has `degraded`
    assert (await a.ask("GET", f"{health}/live")).status_code == 200
    assert (await a.ask("GET", f"{health}/ready")).status_code == 503
    refused = await a.answer("early", "pid")
    assert refused.status_code == 503
    assert refused.headers["retry-after"]

    async def unready() -> bool:
        return (await b.ask("GET", f"{health}/ready")).status_code == 503

    await until(unready)  # which was there before
    await trio.to_thread.run_sync(cluster.engine.start)

    async def ready() -> bool:
        return all([(await node.ask("GET", f"{health}/ready")).status_code == 200 for node in (a, b)])

    await until(ready)
    assert "pid=" in await a.post("early", "pid")


async def test_a_turn_goes_on_from_memory_for_a_grace_and_then_fails(cluster: Cluster) -> None:
    a, b, _ = cluster.nodes
    posted: dict[str, list[str]] = {"short": [], "long": []}
    dice = random.Random(2)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for chat, words in (("short", "count 80 0.01"), ("long", "count 2000 0.01")):
                nursery.start_soon(_posted, a, chat, words, posted[chat])
            await trio.sleep(0.2)
            viewer = SseViewer([a], "long", dice)
            nursery.start_soon(viewer.run)
            await trio.sleep(0.2)
            cluster.engine.kill()

            async def told() -> bool:
                return any(seen is not None and "data-degraded" in seen[1] for seen in viewer.seen)

            await until(told)
            failing_at = trio.current_time() + GRACE_S
            stored = len(viewer.seen)
            await until_shown([viewer], stored + 30)
            assert trio.current_time() < failing_at, "it is shown what is not stored"
            await trio.sleep_until(failing_at + 0.8)  # it gives up after a last call
            assert not any(posted.values()), "no end is shown before it is stored"
            await trio.to_thread.run_sync(cluster.engine.start)
        short, long = await settled([b], "short"), await settled([b], "long")
    assert short is not None
    assert long is not None
    assert (short["state"], long["state"]) == ("finished", "failed")
    degraded = [re.findall(r'"type":"data-degraded","data":(\{[^}]*\})', text) for [text] in posted.values()]
    assert [found[0] for found in degraded] == ['{"journal":"away"}'] * 2
    assert "could not be stored" in posted["long"][0]
    await check([b], "long", long, [viewer], posted["long"])
    await check([b], "short", short, [], posted["short"])
    assert None not in viewer.seen[1:]


async def test_an_engine_that_lost_everything_ends_what_it_does_not_know(cluster: Cluster) -> None:
    a, b, c = cluster.nodes
    posted: list[str] = []
    dice = random.Random(3)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_posted, a, "gone", "count 2000 0.01", posted)
            await trio.sleep(0.3)
            viewers: list[Viewer] = [SseViewer([b], "gone", dice), WebSocketViewer([a, c], "gone", dice)]
            for viewer in viewers:
                nursery.start_soon(viewer.run)
            await until_shown(viewers, 10)
            assert all(viewer.seen[0] is None for viewer in viewers)
            await trio.to_thread.run_sync(cluster.engine.forget)

            async def told() -> bool:
                return all(viewer.gaps for viewer in viewers)

            await until(told)
            # Whoever comes back is told that it is gone, and the chat can be used again.
            assert (await c.ask("GET", "gone")).status_code == 404
            assert "pid=" in await a.post("gone", "pid")
    assert not posted, "the stream was cut, not ended"


async def test_who_saw_more_than_an_engine_has_after_it_was_set_back_is_told(cluster: Cluster) -> None:
    a, b, c = cluster.nodes
    dice = random.Random(4)
    posted: dict[str, list[str]] = {"orphan": [], "owned": []}
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_posted, a, "orphan", "count 2000 0.01", posted["orphan"])
            nursery.start_soon(_posted, c, "owned", "count 150 0.01", posted["owned"])
            await trio.sleep(0.2)
            viewers: dict[str, list[Viewer]] = {
                chat: [SseViewer([b], chat, dice), WebSocketViewer([node], chat, dice)]
                for chat, node in (("orphan", c), ("owned", b))
            }
            everyone = [*viewers["orphan"], *viewers["owned"]]
            for viewer in everyone:
                nursery.start_soon(viewer.run)
            await until_shown(everyone, 10)
            await trio.to_thread.run_sync(cluster.engine.keep)
            await until_shown(everyone, max(len(viewer.seen) for viewer in everyone) + 10)
            a.kill()  # nobody is left who could store it again
            await trio.to_thread.run_sync(cluster.engine.set_back)
        turns = {chat: await settled([b], chat) for chat in posted}
    for chat, state, epoch in (("orphan", "lost", "2-"), ("owned", "finished", "1-")):
        turn = turns[chat]
        assert turn is not None
        assert (turn["state"], turn["position"].rpartition(".")[2][:2]) == (state, epoch)
        await check([b], chat, turn, viewers[chat], posted[chat])
    assert all(viewer.gaps for viewer in viewers["orphan"])
    assert posted["owned"]


async def test_a_decision_is_refused_while_the_engine_is_away_and_taken_afterwards(cluster: Cluster) -> None:
    a, b, c = cluster.nodes
    posted: list[str] = []
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_posted, a, "later", "ask", posted)
            path = f"later/approvals/{await approval_of(b, 'later')}"
            cluster.engine.kill()
            for refused in (
                await b.ask("POST", path, {"approved": True}),
                await c.ask("POST", "later/stop"),
            ):
                assert (refused.status_code, refused.text) == (503, "The journal is not available.")
                assert refused.headers["retry-after"]
            await trio.to_thread.run_sync(cluster.engine.start)

            async def decided() -> bool:
                said = await b.ask("POST", path, {"approved": True, "reason": "go"})
                assert said.status_code in (200, 503)
                return said.status_code == 200

            await until(decided)
    assert '"why":"go"' in posted[0]


async def test_a_node_that_drains_sends_its_followers_elsewhere(cluster: Cluster) -> None:
    a, b, c = cluster.nodes
    dice = random.Random(5)
    posted: list[str] = []
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_posted, a, "moved", "count 100 0.01", posted)
            await trio.sleep(0.2)
            viewers: list[Viewer] = [SseViewer([a, b], "moved", dice), WebSocketViewer([a, c], "moved", dice)]
            for viewer in viewers:
                nursery.start_soon(viewer.run)
            await until_shown(viewers, 10)
            a.signal(signal.SIGTERM)
        await trio.to_thread.run_sync(a.wait)
    turn = await settled([b], "moved")
    assert turn is not None
    assert turn["state"] == "finished"
    await check([b], "moved", turn, viewers, posted)
    for viewer in viewers:
        assert not viewer.gaps
        assert None not in viewer.seen[1:], "they went on with the next chunk"
        [closing] = [told for told in viewer.told if told["reason"] == "drain"]
        assert 500 <= closing["retryMs"] <= 3000
    assert posted[0].endswith("data: [DONE]\n\n")


async def fault_none(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """Nothing breaks; somebody stops a turn."""
    await trio.sleep(dice.uniform(0, 0.5))
    await dice.choice(cluster.nodes).ask("POST", f"{chat}/stop")


async def fault_owner_killed(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """`kill -9` of the owner."""
    cluster.nodes[0].kill()
    await trio.sleep(dice.uniform(0, 0.5))
    await cluster.nodes[0].start()


async def fault_owner_paused(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """The owner sleeps, for longer than its lease or not."""
    cluster.nodes[0].signal(signal.SIGSTOP)
    await trio.sleep(dice.uniform(0.1, PAUSE_S))
    cluster.nodes[0].signal(signal.SIGCONT)


async def fault_owner_drained(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """The owner leaves as it should, and somebody comes in its place."""
    cluster.nodes[0].signal(signal.SIGTERM)
    await trio.to_thread.run_sync(cluster.nodes[0].wait)
    await cluster.nodes[0].start()


async def fault_engine_paused(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """The engine sleeps."""
    cluster.engine.signal(signal.SIGSTOP)
    await trio.sleep(dice.uniform(0.1, PAUSE_S))
    cluster.engine.signal(signal.SIGCONT)


async def fault_engine_killed(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """`kill -9` of the engine, which has everything on its disk."""
    cluster.engine.kill()
    await trio.sleep(dice.uniform(0, PAUSE_S / 2))
    await trio.to_thread.run_sync(cluster.engine.start)


async def fault_link_cut(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """The owner does not reach the engine, the others do."""
    cluster.link.cut()
    await trio.sleep(dice.uniform(0.1, PAUSE_S))
    if dice.random() < 0.5:
        cluster.link.reset()
    cluster.link.mend()


Fault = Callable[[Cluster, str, random.Random], Awaitable[None]]
ALL_FAULTS: list[Fault] = [
    fault_owner_killed,
    fault_engine_paused,
    fault_link_cut,
    fault_engine_killed,
    fault_owner_paused,
    fault_owner_drained,
    fault_none,
]


async def one_fault(cluster: Cluster, run: int, fault: Fault, dice: random.Random) -> list[str]:
    """Run turns and viewers through one fault, and check what they saw. Returns how the turns ended."""
    chats = [f"chat-{i}-{run}" for i in range(4)]
    viewers: dict[str, list[Viewer]] = {}
    posted: dict[str, list[str]] = {chat: [] for chat in chats}
    with trio.fail_after(3 * SETTLED_S):
        async with trio.open_nursery() as nursery:
            for chat in chats:
                viewers[chat] = [
                    SseViewer(cluster.nodes, chat, dice),
                    SseViewer(cluster.nodes[1:], chat, dice),
                    WebSocketViewer(cluster.nodes[1:][::-1], chat, dice),
                ]
                words = f"count {dice.randrange(20, 120)} 0.01"
                nursery.start_soon(_posted, cluster.nodes[0], chat, words, posted[chat])
            await trio.sleep(0.1)
            async with trio.open_nursery() as watching:
                for chat in chats:
                    for viewer in viewers[chat]:
                        watching.start_soon(viewer.run)
                await trio.sleep(dice.uniform(0, 0.5))
                await fault(cluster, chats[0], dice)
                turns = {chat: await settled(cluster.nodes, chat) for chat in chats}
                if None in turns.values():
                    # It never began, so nobody is ever shown its end.
                    await trio.sleep(0.3)
                    watching.cancel_scope.cancel()
            nursery.cancel_scope.deadline = trio.current_time() + 3
    outcomes = []
    for chat, turn in turns.items():
        if turn is None:
            assert all(seen is None for viewer in viewers[chat] for seen in viewer.seen)
        else:
            await check(cluster.nodes, chat, turn, viewers[chat], posted[chat])
            outcomes.append(turn["state"])
    return outcomes


async def test_faults_at_random_points(cluster: Cluster) -> None:
    """Few of them are half of the kinds on one engine, and the other half on the other."""
    first = FAULTS if isinstance(cluster.engine, NatsServer) else 0
    seed = int(os.environ.get("PENSTOCK_SEED", str(random.randrange(1 << 32))))
    print(f"PENSTOCK_SEED={seed}")
    dice = random.Random(seed)
    for run in range(FAULTS):
        fault = ALL_FAULTS[(first + run) % len(ALL_FAULTS)]
        began = trio.current_time()
        outcomes = await one_fault(cluster, run, fault, dice)
        print(run, fault.__name__, *sorted(outcomes), f"{trio.current_time() - began:.1f} s")
        assert set(outcomes) <= {"finished", "lost", "stopped"}
