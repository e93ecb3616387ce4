"""The stream of a journal in NATS: what is in it, and how it is read and written.

Everything is in one stream, NAME, on subjects of it. A TURN and a CHAT are tokens; see `nats_text.token`.

    NAME.turn.CHAT.TURN    what happened to a turn, in order; see `nats_text.TurnEvent`
    NAME.chat.CHAT         the chat; only the last counts, and removes those before
    NAME.id.TURN           the chat of a turn
    NAME.live.CHAT.TURN    a note that the turn may be running
    NAME.ended.CHAT.TURN   a note that it has ended, and when
    NAME.news.CHAT.TURN    not stored: the server says so when something of the turn was
    NAME.notes             not stored: what nodes tell each other

A change is published on condition that the last message of its subject is the one that the change was made for, and it is
true when the server has acknowledged it. There are no consumers, which would be one more thing to get going again after a
server's restart: the stream is asked for a subject's last message, or for those from a sequence on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from penstock.errors import StoreUnavailableError
from penstock.journal.nats_link import MORE, Answer, NatsLink, NatsListener, Request
from penstock.journal.nats_text import token
from penstock.journal.notes import HeardNotes
from penstock.journal.store import TurnRecord
from penstock.limits import NatsLimits

logger = logging.getLogger("penstock.journal")

_NO_STREAM = 404
_OTHER_CONFIG = 10058
_NOT_LAST = (10071, 10164)
"""Another message is the subject's last by now."""
_DEDUPLICATE_NS = 120 * 10**9


class Message(NamedTuple):
    """A message of the stream."""

    subject: str
    sequence: int
    payload: bytes


class Page(NamedTuple):
    """Some messages, in their order."""

    messages: list[Message]
    more: bool
    """Whether there may be more. There are no more if there is none."""


class Publication(NamedTuple):
    """What is to be the next message of a subject."""

    subject: str
    payload: bytes
    after: int | None = None
    """The sequence of the subject's last message, 0 if there is none; None if that doesn't matter."""
    id: str | None = None
    """What the server knows a repetition by, for two minutes."""
    alone: bool = False
    """Whether those before it go."""


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


class _Stored(msgspec.Struct):
    subject: str
    seq: int
    data: bytes = b""


class _Got(msgspec.Struct):
    message: _Stored | None = None
    error: _Error | None = None


_read_got = msgspec.json.Decoder(_Got).decode
_read_ack = msgspec.json.Decoder(_Ack).decode
_json = msgspec.json.Encoder().encode


class NatsStream:
    """A journal's stream."""

    def __init__(self, link: NatsLink, limits: NatsLimits) -> None:
        self._link = link
        self._limits = limits
        self.name = link.address.stream
        self._by_leader = False
        self._get = f"$JS.API.DIRECT.GET.{self.name}"

    def turn(self, chat_id: str, turn_id: str) -> str:
        """Return the subject of what happened to a turn."""
        return f"{self.name}.turn.{token(chat_id)}.{token(turn_id)}"

    def chat(self, chat_id: str) -> str:
        """Return the subject of a chat."""
        return f"{self.name}.chat.{token(chat_id)}"

    def id(self, turn_id: str) -> str:
        """Return the subject of a turn's chat."""
        return f"{self.name}.id.{token(turn_id)}"

    def live(self, chat_id: str, turn_id: str) -> str:
        """Return the subject of the note that a turn may be running."""
        return f"{self.name}.live.{token(chat_id)}.{token(turn_id)}"

    def ended(self, chat_id: str, turn_id: str) -> str:
        """Return the subject of the note that a turn has ended."""
        return f"{self.name}.ended.{token(chat_id)}.{token(turn_id)}"

    def listen_to_turn(self, turn: TurnRecord, heard: Callable[[], object]) -> NatsListener:
        """Return what listens to news of a turn, as a context manager."""
        subject = f"{self.name}.news.{token(turn.chat_id)}.{token(turn.turn_id)}"
        return self._link.listen(subject, lambda subject, payload, headers: heard(), missed=heard)

    @property
    def trusted_s(self) -> float:
        """For how long to trust that there would be news."""
        return self._link.trusted_s

    async def tell(self, notes: Sequence[bytes]) -> None:
        """Tell those who listen to notes.

        Raises:
            StoreUnavailableError: if it is not known that the server has handed them on.
        """
        await self._link.request([Request(f"{self.name}.notes", note, word=True) for note in notes])

    def listen_to_notes(self, notes: HeardNotes) -> NatsListener:
        """Return what listens to notes, as a context manager."""
        return self._link.listen(
            f"{self.name}.notes", lambda subject, note, headers: notes.hear(note), missed=notes.miss
        )

    @property
    def connections(self) -> int:
        """How many connections there were. On another one, the stream may be one that was set back."""
        return self._link.connections

    @property
    def part_bytes(self) -> int:
        """What is larger must be published in parts."""
        return min(self._limits.part_bytes, self._link.max_payload - (self._link.max_payload >> 3))

    async def make(self) -> None:
        """Make the stream, unless it is there.

        Raises:
            ValueError: if there is another stream of its name.
            StoreUnavailableError: if that is not possible now.
        """
        name = self.name
        kinds = ("turn.*.*", "chat.*", "id.*", "live.*.*", "ended.*.*")
        config = {
            "name": name,
            "subjects": [f"{name}.{kind}" for kind in kinds],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "max_bytes": -1,
            "max_age": 0,
            "max_msg_size": -1,
            "num_replicas": self._link.address.replicas,
            "duplicate_window": _DEDUPLICATE_NS,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "republish": {
                "src": f"{name}.turn.*.*",
                "dest": f"{name}.news.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}",
                "headers_only": True,
            },
        }
        # Who may use a stream need not be one who may make it.
        found = await self._api("STREAM.INFO", {}, refusable=True)
        if found.get("error", {}).get("code") == _NO_STREAM:
            found = await self._api("STREAM.CREATE", config, refusable=True)
        if found.get("error", {}).get("err_code") == _OTHER_CONFIG:
            # Another node was quicker, with other replicas.
            found = await self._api("STREAM.INFO", {})
        if "error" in found:
            raise StoreUnavailableError(f"the journal's NATS refused: {found['error'].get('description')}")
        made = found["config"]
        # Its owner may have set limits, or moved it.
        for key in ("subjects", "allow_direct", "allow_rollup_hdrs", "republish", "retention"):
            if made.get(key) != config[key]:
                raise ValueError(f"the NATS stream {name} is there, and is no journal")
        limits = ["max_age", "max_msgs_per_subject"]
        if made.get("discard") == "old":
            limits += ["max_msgs", "max_bytes"]
        if any(made.get(limit, 0) > 0 for limit in limits):
            logger.warning(
                "the NATS stream %s has limits by which it throws away what is old, running turns too", name
            )
        self._by_leader = made["num_replicas"] > 1

    async def _make_again(self) -> None:
        """Make the stream, should the server have lost it: a new journal is better than none until a restart."""
        try:
            await self.make()
        except ValueError as exc:
            raise StoreUnavailableError(str(exc)) from exc

    async def last(self, subjects: Sequence[str]) -> list[Message | None]:
        """Return the last message of each subject."""
        if self._by_leader:
            return await self._ask_leader([{"last_by_subj": subject} for subject in subjects])
        answers = await self._link.request([Request(f"{self._get}.{subject}") for subject in subjects])
        return [_message(found) for (found,) in answers]

    async def at(self, sequence: int) -> Message | None:
        """Return the message of a sequence."""
        ((found,),) = await self._link.request([Request(self._get, _json({"seq": sequence}))])
        if (message := _message(found)) is None and self._by_leader:
            (message,) = await self._ask_leader([{"seq": sequence}])
        return message

    async def page(self, subject: str, sequence: int, count: int | None = None) -> Page:
        """Return some messages of a subject, or of those that a wildcard stands for, from a sequence on."""
        (page,) = await self.pages([(subject, sequence)], count)
        return page

    async def pages(self, places: Sequence[tuple[str, int]], count: int | None = None) -> list[Page]:
        """Return some messages of each of several subjects, as `page` does. Together they are as large as one page."""
        wanted: list[dict[str, str | int]] = [
            {
                "seq": max(sequence, 1),
                "next_by_subj": subject,
                "batch": min(count or self._limits.page_messages, self._limits.page_messages),
                "max_bytes": self._limits.page_bytes // len(places),
            }
            for subject, sequence in places
        ]
        pages = []
        for answers in await self._link.request(
            [Request(self._get, _json(each), many=True) for each in wanted]
        ):
            found = [message for answer in answers if (message := _message(answer)) is not None]
            pages.append(Page(found, bool(found) and answers[len(found) - 1].headers.get(MORE) != "0"))
        return await self._checked(wanted, pages) if self._by_leader else pages

    async def _checked(self, wanted: Sequence[dict[str, str | int]], pages: Sequence[Page]) -> list[Page]:
        """Return pages with what whoever answered lacks at their ends: he may be behind the leader."""
        ends = [i for i, page in enumerate(pages) if not page.more]
        asked = []
        for i in ends:
            found = pages[i].messages
            after = found[-1].sequence + 1 if found else wanted[i]["seq"]
            asked.append({"seq": after, "next_by_subj": wanted[i]["next_by_subj"]})
        checked = list(pages)
        for i, message in zip(ends, await self._ask_leader(asked), strict=True):
            if message is not None:
                checked[i] = Page([*pages[i].messages, message], more=True)
        return checked

    async def _ask_leader(self, wanted: Sequence[dict[str, str | int]]) -> list[Message | None]:
        """Return messages as the leader of several replicas has them, who alone knows all that was acknowledged."""
        answers = await self._link.request(
            [Request(f"$JS.API.STREAM.MSG.GET.{self.name}", _json(each)) for each in wanted]
        )
        found: list[Message | None] = []
        for (answer,) in answers:
            if answer.status:
                raise StoreUnavailableError("the journal's NATS has no JetStream, or not for us")
            got = _read_got(answer.payload)
            if got.message is not None:
                found.append(Message(got.message.subject, got.message.seq, got.message.data))
            elif got.error is not None and got.error.code == 404:
                found.append(None)
            else:
                raise StoreUnavailableError("the journal's stream in NATS can't be read")
        return found

    async def publish(self, publications: Sequence[Publication], connection: int | None = None) -> list[int]:
        """Publish in order, and return the sequences; 0 for what would not have been the next of its subject.

        Args:
            publications: what is published.
            connection: which of the `connections` it must be; None for any.

        Raises:
            OtherConnectionError: if it is another by now; then nothing was published.
            StoreUnavailableError: if it is not known of each whether it was stored.
        """
        answers = await self._link.request(
            [Request(each.subject, each.payload, _headers(each)) for each in publications], connection
        )
        sequences = []
        for (answer,) in answers:
            if answer.status:
                await self._make_again()
                raise StoreUnavailableError("the journal's stream in NATS was gone")
            ack = _read_ack(answer.payload)
            if ack.error is not None and ack.error.err_code not in _NOT_LAST:
                raise StoreUnavailableError(f"the journal's NATS refused: {ack.error.description}")
            # Of a duplicate it is only known that something of the kind was stored.
            sequences.append(0 if ack.error is not None or ack.duplicate else ack.seq)
        return sequences

    async def purge(self, bounds: Sequence[tuple[str, int | None]]) -> None:
        """Remove the messages of subjects, all at once each; those before a sequence, where one is given."""
        await self._link.request(
            [
                Request(
                    f"$JS.API.STREAM.PURGE.{self.name}",
                    _json({"filter": subject} if before is None else {"filter": subject, "seq": before}),
                )
                for subject, before in bounds
            ]
        )

    async def subjects(self, wildcard: str) -> tuple[list[str], int]:
        """Return the subjects that have messages, and the stream's last sequence then."""
        found: list[str] = []
        while True:
            wanted = {"subjects_filter": wildcard, "offset": len(found)}
            info = await self._api("STREAM.INFO", wanted, refusable=True)
            if info.get("error", {}).get("code") == _NO_STREAM:
                await self._make_again()
            if "error" in info:
                raise StoreUnavailableError(f"the journal's NATS refused: {info['error'].get('description')}")
            page = info["state"].get("subjects") or {}
            found += page
            if not page or len(found) >= info.get("total", 0):
                return found, info["state"]["last_seq"]

    async def bytes(self) -> int:
        """Return what the stream holds, as the server counts."""
        info = await self._api("STREAM.INFO", {})
        held: int = info["state"]["bytes"]
        return held

    async def _api(self, name: str, value: object, *, refusable: bool = False) -> dict[str, Any]:
        ((answer,),) = await self._link.request([Request(f"$JS.API.{name}.{self.name}", _json(value))])
        if answer.status:
            raise StoreUnavailableError("the journal's NATS has no JetStream, or not for us")
        result: dict[str, Any] = msgspec.json.decode(answer.payload)
        if "error" in result and not refusable:
            raise StoreUnavailableError(f"the journal's NATS refused: {result['error'].get('description')}")
        return result


def _headers(publication: Publication) -> dict[str, str] | None:
    headers = {}
    if publication.after is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(publication.after)
    if publication.id is not None:
        headers["Nats-Msg-Id"] = publication.id
    if publication.alone:
        headers["Nats-Rollup"] = "sub"
    return headers or None


def _message(answer: Answer) -> Message | None:
    """Return a message; None if the answer is that there is none, or that there are no more."""
    headers, status = answer.headers, answer.status
    if status:
        if status in ("404", "204"):
            return None
        raise StoreUnavailableError(
            "the journal's stream in NATS is gone, or not for us"
            if status == "503"
            else f"the journal's NATS refused: {headers.get('Description', status)}"
        )
    return Message(headers["Nats-Subject"], int(headers["Nats-Sequence"]), answer.payload)
