"""The frames of a chat over a WebSocket: what a client may say, and how what it is sent is counted and framed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import Ping, TextMessage

from penstock.asgi import PING_FRAME
from penstock.connections.pump import merge
from penstock.errors import RemoteProtocolError
from penstock.journal.entry import Entry
from penstock.limits import WireLimits
from penstock.server.direct import Framing
from penstock.web.frames import Chunks, Events
from penstock.wire.chunks import TextDelta
from penstock.wire.codec import encode
from penstock.wire.websocket import (
    PING_JSON,
    REQUEST_ID_CHARACTERS,
    Act,
    Detach,
    FrameError,
    Resume,
    Send,
    Watch,
    frame,
    payloads,
    read_client_frame,
    text_message,
)

USER = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}


def read(**fields: Any) -> Any:
    """Read a frame, with a request id unless it says another."""
    return read_client_frame(json.dumps({"requestId": "r", **fields}).encode())


def refused(data: bytes) -> FrameError:
    """The error that a frame is refused with."""
    with pytest.raises(FrameError) as caught:
        read_client_frame(data)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return caught.value


def test_a_send_as_the_ai_sdk_has_it() -> None:
    """Its `body` is what an HTTP request has beside the message; the frame's own fields are stronger."""
    sent = read(
        type="send",
        id="chat-1",
        trigger="submit-message",
        messages=[USER],
        headers={"Authorization": "Bearer x"},
        body={"model": "small", "id": "another", "messages": []},
        metadata={"any": "thing"},
    )
    assert isinstance(sent, Send)
    assert (sent.request_id, sent.chat.chat_id) == ("r", "chat-1")
    assert [message.text for message in sent.chat.messages] == ["Hello"]
    assert sent.headers == {"authorization": "Bearer x"}
    assert sent.chat.body == {"model": "small"}


def test_a_send_of_the_newest_message_only() -> None:
    sent = read(type="send", id="c", message=USER, trigger="regenerate-message", messageId="m")
    assert isinstance(sent, Send)
    assert sent.chat.message is not None
    assert (sent.chat.message.text, sent.chat.messages) == ("Hello", [])
    assert (sent.chat.trigger, sent.chat.message_id) == ("regenerate-message", "m")


def test_all_other_frames() -> None:
    assert read(type="resume", id="c", body={}) == Resume("r", "c", {}, None)
    assert read(type="resume", id="c", after="m.1-4", headers={"X-A": "é"}) == Resume(
        "r", "c", {"x-a": "é"}, "m.1-4"
    )
    assert read(type="resume", id="c", lastSequence=4, metadata=None) == Resume("r", "c", {}, None)
    assert read(type="abort") == read(type="unwatch", id=5) == Detach("r")
    assert read(type="watch", id="c") == Watch("r", "c", {}, None, None, None)
    assert read(type="watch", id="c", types="chunk", lane="l", after="m.1-1") == Watch(
        "r", "c", {}, "chunk", "l", "m.1-1"
    )
    stop = read(type="stop", id="c", reason="enough")
    assert isinstance(stop, Act)
    assert (stop.kind, stop.chat_id, stop.fields["reason"]) == ("stop", "c", "enough")
    approve = read(type="approve", id="c", approvalId="a", approved=True)
    assert isinstance(approve, Act)
    assert (approve.kind, approve.fields["approvalId"]) == ("approve", "a")
    turn = read(type="turn", id="c", turnId="t")
    assert isinstance(turn, Act)
    assert (turn.kind, turn.fields["turnId"]) == ("turn", "t")


NAMELESS = {
    "not JSON": b"hello",
    "nothing": b"",
    "not an object": b"[]",
    "a number": b"5",
    "not UTF-8": b'{"type":"abort","requestId":"\xff"}',
    "a byte order mark": b'\xef\xbb\xbf{"type":"abort","requestId":"r"}',
    "a key twice": b'{"type":"abort","requestId":"r","requestId":"q"}',
    "no type": b'{"requestId":"r"}',
    "a type that is no string": b'{"type":5,"requestId":"r"}',
    "no request id": b'{"type":"abort"}',
    "a request id that is no string": b'{"type":"abort","requestId":5}',
    "a null": b'{"type":"abort","requestId":null}',
    "an empty request id": b'{"type":"abort","requestId":""}',
    "a long request id": b'{"type":"abort","requestId":"%b"}' % (b"r" * (REQUEST_ID_CHARACTERS + 1)),
    "too deep": b'{"type":"abort","requestId":"r","x":%b}' % (b"[" * 100 + b"]" * 100),
    "a lone surrogate": b'{"type":"abort","requestId":"\\ud800"}',
}


@pytest.mark.parametrize("case", NAMELESS)
def test_what_belongs_to_no_request(case: str) -> None:
    assert refused(NAMELESS[case]).request_id is None


BAD: dict[str, dict[str, Any]] = {
    "an unknown type": {"type": "sing", "id": "c"},
    "a type of the server's": {"type": "chunk", "id": "c"},
    "no chat": {"type": "resume"},
    "a chat that is no id": {"type": "resume", "id": "../x"},
    "a chat that is no string": {"type": "watch", "id": 5},
    "no message": {"type": "send", "id": "c"},
    "messages that are none": {"type": "send", "id": "c", "messages": "x"},
    "a message without parts": {"type": "send", "id": "c", "message": {"id": "u", "role": "user"}},
    "a body that is a list": {"type": "send", "id": "c", "message": USER, "body": []},
    "a body that is null": {"type": "send", "id": "c", "message": USER, "body": None},
    "headers that are a list": {"type": "resume", "id": "c", "headers": []},
    "a header that is a number": {"type": "resume", "id": "c", "headers": {"a": 5}},
    "a header with a line feed": {"type": "resume", "id": "c", "headers": {"a": "b\r\ncookie: c"}},
    "a header with a NUL": {"type": "resume", "id": "c", "headers": {"a": "\0"}},
    "a header beyond Latin-1": {"type": "resume", "id": "c", "headers": {"a": "€"}},
    "a name with a space": {"type": "resume", "id": "c", "headers": {"a b": "c"}},
    "a name with a colon": {"type": "resume", "id": "c", "headers": {"a:": "c"}},
    "no name": {"type": "resume", "id": "c", "headers": {"": "c"}},
    "a name twice": {"type": "resume", "id": "c", "headers": {"Cookie": "a", "cookie": "b"}},
    "a position that is a number": {"type": "resume", "id": "c", "after": 5},
    "types that are a list": {"type": "watch", "id": "c", "types": ["chunk"]},
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_request_is_refused_for(case: str) -> None:
    assert refused(json.dumps({"requestId": "r", **BAD[case]}).encode()).request_id == "r"


def test_too_much_of_something_is_refused_by_name() -> None:
    many = json.dumps({"type": "send", "requestId": "r", "id": "c", "messages": [USER] * 2_001}).encode()
    assert "too many messages" in str(refused(many))
    with pytest.raises(FrameError, match="too long"):
        read_client_frame(b'{"type":"abort","requestId":"r"}', WireLimits(json_bytes=10))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    [
        "type",
        "requestId",
        "id",
        "messages",
        "message",
        "headers",
        "body",
        "after",
        "types",
        "approvalId",
        "trigger",
    ]
)
kinds = st.sampled_from(["send", "resume", "abort", "stop", "approve", "turn", "watch", "unwatch", "x"])


@given(st.dictionaries(names, values | kinds | st.just("r") | st.just([USER]), max_size=8))
@example({"type": "send", "requestId": "r", "id": "c", "messages": [USER, USER]})
def test_any_object_is_a_frame_or_refused_with_its_own_request(value: dict[str, Any]) -> None:
    request_id: str | None
    try:
        request_id = read_client_frame(json.dumps(value).encode()).request_id
    except FrameError as exc:
        request_id = exc.request_id
    assert request_id is None or request_id == value["requestId"]


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_as_the_peers_fault(data: bytes) -> None:
    try:
        read_client_frame(data)
    except RemoteProtocolError:
        pass


def entry(offset: int, *, spoken_from: int = 5) -> Entry:
    """An entry of a turn called `m`."""
    chunk = TextDelta(id="t", delta=f"{offset} ")
    return Entry(offset, chunk, encode(chunk), b"m.1-", spoken_from)


class Client:
    """Takes or refuses what it is offered, and checks the numbers of what it took."""

    def __init__(self, request_id: str = "r", version: Any = 7) -> None:
        self.refuses = False
        self.frames: list[dict[str, Any]] = []
        self.chunks = Chunks(request_id, version, self.take)

    def take(self, data: bytes) -> bool:
        if not self.refuses:
            self.frames += [json.loads(text) for text in payloads(data)]
            assert [each["sequence"] for each in self.frames] == list(range(len(self.frames)))
        return not self.refuses

    def offer(self, entries: Sequence[Entry], *, refuses: bool = False) -> bool:
        """As the fan-out does."""
        self.refuses = refuses
        data = self.chunks(entries)
        return not data or self.chunks.offer(data)

    def send(self, entries: Sequence[Entry]) -> None:
        """As the pump does."""
        self.refuses = False
        if data := self.chunks(entries):
            self.take(data)

    @property
    def text(self) -> str:
        return "".join(each["chunk"]["delta"] for each in self.frames)


def test_chunks_are_numbered_from_0_and_have_their_positions() -> None:
    client = Client('a "b"\n')
    client.send([entry(7), entry(8)])
    client.offer([entry(9)])
    assert client.frames[2] == {
        "type": "chunk",
        "requestId": 'a "b"\n',
        "sequence": 2,
        "chunk": {"type": "text-delta", "id": "t", "delta": "9 "},
        "position": "m.1-9",
    }


def test_what_a_version_does_not_know_takes_no_number() -> None:
    client = Client(version=6)
    client.send([entry(0), entry(1, spoken_from=7), entry(2)])
    client.offer([entry(3, spoken_from=7)])
    client.offer([entry(4)])
    assert [each["position"] for each in client.frames] == ["m.1-0", "m.1-2", "m.1-4"]


def test_a_refused_rendering_takes_no_number_though_what_follows_is_joined() -> None:
    """Joined deltas have the last one's offset, which is beyond all that was refused."""
    client = Client()
    client.send([entry(0)])
    assert not client.offer([entry(1), entry(2)], refuses=True)
    assert not client.offer([entry(1), entry(2), entry(3)], refuses=True)
    joined, _ = merge([entry(offset) for offset in range(1, 6)])
    assert len(joined) == 1
    client.send(joined)
    client.offer([entry(6)])
    assert client.text == "0 1 2 3 4 5 6 "


@given(
    st.lists(st.tuples(st.sampled_from(["offer", "refuse", "send", "join"]), st.integers(1, 5)), max_size=30)
)
def test_numbers_have_no_gap_whatever_is_refused_and_joined(steps: list[tuple[str, int]]) -> None:
    client, at = Client(), 0
    for how, count in steps:
        entries = [entry(offset) for offset in range(at, at + count)]
        if how == "refuse":
            client.offer(entries, refuses=True)
            continue
        if how == "offer":
            client.offer(entries)
        else:
            client.send(merge(entries)[0] if how == "join" else entries)
        at += count
    assert client.text == "".join(f"{offset} " for offset in range(at))


def test_a_replay_is_numbered_on_and_its_last_has_the_position() -> None:
    client = Client()
    jsons = [encode(TextDelta(id="t", delta=delta)) for delta in ("a", "b")]
    client.take(client.chunks.replay(jsons, "m.1-5"))
    client.offer([entry(6)])
    assert [each.get("position") for each in client.frames] == [None, "m.1-5", "m.1-6"]
    assert Client().chunks.replay([], "m.1-5") == b""


SIZES = [1, 124, 125, 126, 127, 65_535, 65_536, 65_537, 300_000]


@pytest.mark.parametrize("size", SIZES)
def test_a_message_of_any_size_is_framed_as_the_protocol_says(size: int) -> None:
    text = b"x" * size
    header = 2 if size < 126 else 4 if size < 65_536 else 10
    framed = text_message(text)
    assert len(framed) == header + size
    peer = Connection(ConnectionType.CLIENT)
    peer.receive_data(framed)
    assert list(peer.events()) == [TextMessage(data=text.decode())]
    assert list(payloads(framed)) == [text]


@given(st.lists(st.binary(max_size=200).map(lambda data: data.hex().encode()), max_size=20))
def test_messages_and_pings_can_be_joined_and_taken_apart(texts: list[bytes]) -> None:
    framed = b"".join([text_message(text) if text else PING_FRAME for text in texts])
    peer = Connection(ConnectionType.CLIENT)
    peer.receive_data(framed)
    expected = [TextMessage(data=text.decode()) if text else Ping() for text in texts]
    assert list(peer.events()) == expected
    assert list(payloads(framed)) == texts


def events_of(data: bytes) -> list[dict[str, Any]]:
    """What a client reads."""
    return [json.loads(text) for text in payloads(data)]


IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=REQUEST_ID_CHARACTERS)


@given(
    st.lists(IDS, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 8), st.integers(1, 4)), max_size=6),
    st.sampled_from([None, "chunk", "text-delta", "finish"]),
)
def test_each_watcher_has_its_own_id_on_what_is_rendered_once_for_all(
    ids: list[str], passes: list[tuple[int, int]], types: str | None
) -> None:
    """Some of the ids are as long as each other, and some entries are asked for again, or joined."""
    ids += [f"w{number}" for number in range(3)]
    watchers = [Events(request_id, types, None) for request_id in ids]
    entries = [entry(offset) for offset in range(12)]
    for begin, count in passes:
        some = entries[begin : begin + count]
        for batch in (some, merge(some)[0], []):
            for request_id, watcher in zip(ids, watchers, strict=True):
                wanted = [] if types == "finish" else batch
                assert events_of(watcher(batch)) == [
                    {
                        "type": "event",
                        "requestId": request_id,
                        "event": "chunk",
                        "data": json.loads(each.json),
                        "position": each.id.decode(),
                    }
                    for each in wanted
                ]


def test_two_turns_that_are_watched_at_once_are_not_mixed() -> None:
    first, second = Events("a", None, None), Events("b", None, None)
    for offset in range(3):
        one, two = entry(offset), entry(offset)
        two.id_prefix = b"n.1-"
        assert [each["position"] for each in events_of(first([one]) + second([two]))] == [
            f"m.1-{offset}",
            f"n.1-{offset}",
        ]


def test_those_who_watch_for_the_same_share_what_is_rendered_and_no_burst_is_kept() -> None:
    few, many = [entry(0)], [entry(offset) for offset in range(4_000)]
    watchers = [Events(id, "text-delta", None) for id in ("1", "2")]
    shared = watchers[0]._shared
    assert watchers[1]._shared is shared
    assert shared.pieces(few) is shared.pieces([*few])
    assert len(events_of(watchers[0](many))) == 4_000
    assert shared.pieces(few) is shared.pieces(few)
    assert sum(map(len, shared._pieces)) < 1_000
    wish = ",".join(["text-delta"] * 200)
    assert Events("1", wish, None)._shared is not Events("2", wish, None)._shared


def test_framing_keeps_the_last_and_no_other() -> None:
    calls: list[bytes] = []

    def encode_once(data: bytes) -> bytes:
        calls.append(data)
        return b"[" + data + b"]"

    framing = Framing(encode_once)
    first, second = b"a", b"bb"
    assert framing.frame(first) is framing.frame(first)
    assert framing.frame(second) == b"[bb]"
    assert framing.frame(first) == b"[a]"
    assert calls == [first, second, first]


def test_our_frames_are_what_any_client_ignores_or_knows() -> None:
    assert json.loads(PING_JSON) == {"type": "ping", "requestId": ""}
    assert events_of(frame("error", "r", errorText="No.")) == [
        {"type": "error", "requestId": "r", "errorText": "No."}
    ]


def test_a_line_feed_in_what_is_said_stays_one_message() -> None:
    """Events are rendered in lines, and cut there."""
    chunk = TextDelta(id="t\n", delta="a\nb\r\n\u2028")
    entries = [Entry(0, chunk, encode(chunk), b"m.1-")]
    for data in (Client("r\n").chunks(entries), Events("r\n", None, None)(entries)):
        assert [each["requestId"] for each in events_of(data)] == ["r\n"]
