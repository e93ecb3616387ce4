"""Every default number: the unit is in the name, the reason beside it.

Groups are frozen structs, so that an app can pass its own: `Limits(write_stall_s=5)`.
"""

from __future__ import annotations

import math

import msgspec


class WireLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What is accepted from outside, before anything is understood of it."""

    json_bytes: int = 1 << 20
    """One JSON document, 1 MiB: a chat history of some 150,000 words."""
    json_depth: int = 64
    """Nesting of one JSON document. Tool schemas stay below 20; a parser bomb needs thousands."""
    json_containers: int = 100_000
    """Arrays and objects of one JSON document. A map of 80,000 points fits; 350,000 of `[]` cost 250 ms and 30 MB."""
    chunk_bytes: int = 256 << 10
    """One encoded chunk, 256 KiB. Larger tool outputs belong behind a URL."""
    sse_line_bytes: int = 1 << 20
    """One line of an event stream. Upstreams send whole tool inputs in one line."""
    sse_event_bytes: int = 4 << 20
    """All `data` of one event."""
    reason_chars: int = 500
    """What a client may say of why it stops a turn; the rest is cut off."""
    message_parts: int = 1_000
    """Parts of one message in a request. Real ones have fewer than a hundred."""
    messages: int = 2_000
    """Messages of one request."""


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the server holds for its clients, and for how long."""

    connections: int = 10_000
    """Open sockets. At about 25 kB each, 250 MB. Over it: 503 with Retry-After."""
    retry_after_s: int = 5
    """What that 503 tells the client to wait."""
    head_s: float = 10.0
    """From a request's first byte to the end of its head. nginx: client_header_timeout 60; a browser needs < 1."""
    body_s: float = 30.0
    """From the end of a request's head to the end of its body."""
    head_bytes: int = 16 << 10
    """A request's head. node.js: 16 KiB, nginx: 4 x 8 KiB."""
    keep_alive_s: float = 15.0
    """An idle connection between two requests. A browser's preconnect is used within seconds or never."""
    paused_bytes: int = 64 << 10
    """Bytes a client may send ahead while its response still runs (pipelining); over it the socket is not read."""
    unread_bytes: int = 64 << 10
    """Body or WebSocket messages that wait for the app's `receive`; over it the socket is not read."""
    pong_wait_s: float = 20.0
    """From a ping on a WebSocket until the client must have said anything. A phone between two cells needs ten."""
    websocket_frames_per_s: int = 200
    """Messages, pings, pongs and fragments of less than 1 KiB of one client in any second. A busy page sends ten.
    Over it: 1008."""
    websocket_message_bytes: int = 1 << 20
    """One WebSocket message, as large as a request's body: both carry a chat's history. Over it: 1009. Of a compressed
    one it is what comes out, and the cap on the memory for that."""
    websockets: int = 9_000
    """WebSockets at once. What is left of `connections` is for pages, stops and probes. Over it: 1013, which a page can
    read, as it can't read a 503."""
    deflate_from_bytes: int = 512
    """A shorter WebSocket message is not compressed: a chunk's frame has 165, of which 132 would be left, for 8 us."""
    write_stall_s: float = 30.0
    """One write of which the peer takes nothing. Also TCP_USER_TIMEOUT on every accepted socket."""
    linger_s: float = 2.0
    """After an answer that ends the connection early, what the client still sends is read and dropped for so long:
    closing on unread bytes resets the socket, and the reset can overtake the answer (RFC 9112 section 9.6)."""
    drain_s: float = 10.0
    """From SIGTERM until what still streams is reset. Kubernetes kills after 30."""
    abort_s: float = 0.5
    """From that reset until the apps that go on are cancelled."""
    app_start_s: float = 60.0
    """The app's lifespan startup: opening a store, replaying a journal."""
    app_stop_s: float = 5.0
    """The app's lifespan shutdown."""
    backlog: int = 1_024
    """Connections the kernel holds for us before accept."""


class SupervisorLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How `penstock serve --workers` keeps its processes."""

    workers: int = 64
    """Workers. Each holds the listening sockets of all; a machine with more cores wants a machine less."""
    start_s: float = 75.0
    """From a worker's start until it accepts connections: `app_start_s`, and Python's own start on a busy machine."""
    starts: int = 8
    """Starts in a row that come to nothing, with no worker left, and the supervisor ends: a minute of trying."""
    first_backoff_s: float = 0.5
    """From the end of a worker to the start of the next in its place."""
    backoff_max_s: float = 30.0
    """It doubles each time up to this."""
    steady_s: float = 60.0
    """A worker that lasted so long has not failed in starting: the next one after it comes soon."""
    kill_s: float = 2.0
    """What a worker gets beyond `drain_s` and `app_stop_s`, for its interpreter to end. Then it is killed."""
    spare_patience_s: float = 0.1
    """How long a connection waits for the worker that the kernel has chosen, until another takes it: so long a loop
    that does its work is not held up, and a person does not notice."""


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection holds, and how long it waits for its client."""

    frames: int = 256
    """Capacity of the channel from producer to writer, in frames."""
    requests: int = 32
    """Requests at once on one WebSocket. A page has one for each chat that it shows."""
    keepalive_s: float = 15.0
    """Idle time before a comment is written. ALB and nginx cut at 60 s, some phones' carriers at 30."""
    write_stall_s: float = 30.0
    """One write that does not end. A phone in a tunnel comes back within seconds, or with a new connection."""
    callback_s: float = 2.0
    """One on-close callback. It is cancelled then, and counted."""
    queue_bytes: int = 256 << 10
    """Bytes that may wait in that channel before `send` waits and `send_nowait` refuses."""
    drain_s: float = 30.0
    """From `aclose` until what waits is written; as long as one stalled write."""


class TurnLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one turn may use."""

    store_lag_entries: int = 1_024
    """Entries that the store may be behind before the producer waits."""
    store_lag_bytes: int = 1 << 20
    """Bytes that the store may be behind before the producer waits."""
    turn_bytes: int = 32 << 20
    """All chunks of one turn, encoded. A book is 1 MiB; over it the turn fails."""
    seal_s: float = 5.0
    """Ending a turn while everything round it is being cancelled."""
    orphan_grace_s: float = math.inf
    """From the last follower's leaving to the cancellation of the producer. Infinite: it runs to its end."""
    stop_grace_s: float = 5.0
    """From a stop to the forced end, for a producer that doesn't end by itself."""
    yield_entries: int = 64
    """Writes in a row without a scheduler pass: a burst must not hold the others, and a pass costs as much as ten."""
    yield_bytes: int = 64 << 10
    """The same in bytes of JSON."""


class ViewerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """When a viewer is behind, and what becomes of it."""

    batch_entries: int = 512
    """Entries that are sent as one frame: a page of replay, some 50 KiB."""
    pressure_entries: int = 512
    """Further entries that wait after a batch was taken: from here on the viewer is behind, and deltas are joined."""
    pressure_bytes: int = 256 << 10
    """The same, in bytes of JSON."""
    merge_entries: int = 8_192
    """Entries that are joined at once: a few milliseconds of work."""
    lag_s: float = 60.0
    """Behind, and not caught up once in so long, and the viewer is cut. A lift takes less."""


class HubLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one hub holds."""

    begin_s: float = 5.0
    """Asking the store to begin a turn. It is not cancelled halfway, so it must end by itself."""
    flush_s: float = 0.02
    """From one flush to the next, unless somebody waits for it: what a `kill -9` can lose beside the commit under way."""
    shared_flush_s: float = 0.01
    """The same where the store is what other nodes follow: their followers see text so much later."""
    shared_flush_entries: int = 32
    """There, as many entries of a turn that the store lacks hurry the flush."""
    coalesce_s: float = 0.0
    """How long the first of some chunks waits for more, so that followers get them in one write. 0: what one pass of
    the scheduler brings. 0.02 halves the writes of a fast model, and nobody reads so fast."""
    flush_retry_s: float = 0.5
    """From a failed flush to the next try. Producers wait meanwhile, once they are `store_lag_*` ahead."""
    replay_finished_s: float = 300.0
    """For how long after its end a turn is replayed to a client that resumes: the length of a tunnel."""
    queue_s: float = 120.0
    """How long a message waits for the answer before it, where an app queues. Its client gets no byte meanwhile."""
    journal_grace_s: float = 30.0
    """For how long a turn goes on from memory when its store can't be reached, and a follower elsewhere waits for it: a
    Redis that restarts or fails over. Then the producer is cancelled, and the turn fails."""
    answer_s: float = 2.0
    """How long to wait for another node to say what became of a user's decision."""
    unseen_turns: int = 1_000
    """Turns of other nodes that are yet to be looked at: a second's, 200 kB. Over it the watched chats are looked at instead."""
    replica_poll_s: float = 0.25
    """Between two looks at a turn that another process runs."""
    kept_tails: int = 64
    """Turns of the recent past whose entries stay in memory, for clients that come back at once."""
    kept_tail_bytes: int = 64 << 20
    """The same, in bytes of entries."""
    running_turns: int = 5_000
    """Turns that run at once in this process. Over it: 503."""
    lease_s: float = 15.0
    """From a renewal of a running turn's lease until others may end the turn as lost. A process that is alive renews
    several times within it; one that was killed leaves its followers waiting for no longer."""


class SqliteLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How the SQLite store uses its file."""

    lock_s: float = 4.0
    """From a call until it fails because another process holds the file's write lock. Less than `begin_s` and
    `seal_s`, so that the caller hears why."""
    lock_try_s: float = 0.1
    """One try to get that lock. It waits in a thread, which nothing interrupts."""
    close_s: float = 5.0
    """What still waits when the store is closed is written within this time."""
    commit_operations: int = 1_024
    """Operations of one commit. More gain nothing, and the first ones would wait for the last."""
    log_rows: int = 4_096
    """Rows of the log. Over it they are packed: some 10 ms during which nothing else is written."""
    log_bytes: int = 4 << 20
    """Entries in the log, for the same reason."""
    notes_s: float = 0.25
    """From a look at what other processes have told to the next."""
    trim_s: float = 10.0
    """From a look at what retention should remove to the next."""
    trim_entries: int = 20_000
    """Entries that retention removes in one transaction: some 10 ms. At least one turn."""


class RedisLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How the Redis store uses its connection."""

    connect_s: float = 2.0
    """Resolving the name and the TCP connection, with TLS, and then the greeting, each."""
    call_s: float = 2.0
    """From a call to its answer, a new connection included. Two of them fit in `begin_s` and in `seal_s`. No answer by
    then, and the connection is taken for dead."""
    first_backoff_s: float = 0.05
    """From a lost connection to the next try, or half of it: a thousand nodes don't come back at once."""
    backoff_max_s: float = 1.0
    """It doubles with each try up to this. A Redis that restarts is back in a second."""
    recheck_s: float = 5.0
    """How long a follower of another node's turn trusts that it would be told of news. Some may get lost."""
    trim_s: float = 10.0
    """From a look at what all ended turns take to the next."""
    ended_noted: int = 10_000
    """Ended turns that wait for it: a thousand a second. Over it the oldest are left to their time to live."""
    remembered_turns: int = 10_000
    """Turns of which it is remembered in which chat they are, at 300 bytes each."""


class NatsLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How the NATS store uses its connection."""

    connect_s: float = 2.0
    """Resolving a server's name, the connection, with TLS, and the greeting, together."""
    call_s: float = 2.0
    """From a call to its answer, a new connection included. Two of them fit in `begin_s` and in `seal_s`. No answer by
    then, nor anything else, and the connection is taken for dead."""
    close_s: float = 1.0
    """Writing what was to be published, and closing the connection."""
    ping_s: float = 10.0
    """Between two pings on a connection. After two without an answer it is taken for dead."""
    first_backoff_s: float = 0.05
    """From a lost connection to the next try, or half of it: a thousand nodes don't come back at once."""
    backoff_max_s: float = 1.0
    """It doubles with each try up to this. A NATS that restarts is back in a second."""
    recheck_s: float = 5.0
    """How long a follower of another node's turn trusts that it would be told of news. Some may get lost."""
    unsent_bytes: int = 8 << 20
    """What waits to be sent. Over it, what nobody waits for is dropped: the mirror's copies."""
    foreign_events: int = 256
    """Events of other services that wait to be sent to one watcher. Over it they are dropped, and it is told so."""
    part_bytes: int = 512 << 10
    """What is larger is stored in several messages. A server takes 1 MiB, if it was not told otherwise."""
    page_messages: int = 256
    """Messages of a turn that are asked for at once."""
    page_bytes: int = 1 << 20
    """The same, in bytes."""
    tries: int = 50
    """Of one change against the changes of others, each of which got ahead. Two owners don't meet so often."""
    trim_s: float = 10.0
    """From a look at what retention should remove to the next."""
    trimmed_at_once: int = 200
    """Turns or chats that one look takes on."""
    remembered_turns: int = 10_000
    """Turns of which it is remembered in which chat they are, and what was last seen of them, at 2 KB each."""


class RelayLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a model upstream may take."""

    connect_s: float = 10.0
    """Resolving the name, the TCP connection and TLS, each."""
    first_byte_s: float = 90.0
    """From the request to the head of the answer. A large local model reads a long prompt for a minute, and a model
    that does not stream says nothing before it knows all."""
    silence_s: float = 90.0
    """No byte of any kind, heartbeats included, within the answer. The whole turn has no such limit."""
    thinking_s: float = 5.0
    """Without a chunk, the time from one `data-thinking` to the next. Infinite: none."""
    heartbeat_s: float = 1.0
    """The same at the least, where the upstream's own heartbeats are passed on."""
    thinking_share: float = 0.01
    """Neither is ever less than this share of the time that has passed without a chunk: what is journalled of a turn
    that is stuck for a day is some hundred chunks, not some ten thousand."""
    retries: int = 2
    """Requests after the first, while no chunk of the answer was written."""
    backoff_s: float = 0.5
    """The first wait before such a request is up to this, the next up to twice as much."""
    retry_after_max_s: float = 30.0
    """The longest wait that an upstream may ask for with `Retry-After`. Asked for more, the turn fails at once."""
    redirects: int = 3
    """Redirects of one request, to the same origin."""
    trailer_s: float = 5.0
    """No byte after the finish reason, where usage and the end marker may come or not. The answer is whole by then."""
    eof_s: float = 0.05
    """After the end marker, for the end of the body: only then can the connection be used again."""
    answer_bytes: int = 128 << 20
    """One streamed answer: 128,000 tokens, one an event, at up to 1 kB of JSON around each."""
    refusal_bytes: int = 2 << 10
    """What is read, for the log, of a body that comes with an error status."""
    refusal_s: float = 2.0
    """How long that may take."""
    recover_s: float = 300.0
    """Asking an upstream for the rest of an answer, until it is there. A model that reasons takes minutes."""
    recover_first_s: float = 0.5
    """From the first time of asking to the second: an answer that broke off near its end is whole by then."""
    recover_max_s: float = 5.0
    """It doubles each time up to this, which is what the user waits at most after the answer is whole."""
    recover_ask_s: float = 20.0
    """Asking once, to the end of the body."""
    recovered_bytes: int = 4 << 20
    """An answer that is recovered, as one JSON value."""
    max_tokens: int = 16_384
    """Of an answer, thinking included, for Anthropic, which demands a number; `extra_body` may have another. Some 12,000
    words; every model since Claude 3.7 takes it."""


class ToolLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What `run_tools` does at most."""

    steps: int = 20
    """Times that the model is asked in one request. A model that never stops calling tools would cost without end; the
    AI SDK's `ToolLoopAgent` has as many."""
    parallel: int = 8
    """Tools of one turn that run at once. Models call two or three together; a tool may be somebody's small service."""
    threads: int = 32
    """Sync tools that run at once in this process. An abandoned one holds its thread until it returns."""
    error_chars: int = 500
    """What is said of an input that doesn't fit: it may quote a name that the model made up."""


class ClientLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long `penstock.client` waits and tries, and what it takes from a server."""

    connect_s: float = 10.0
    """Resolving the name, the TCP connection and TLS, each."""
    silence_s: float = 45.0
    """No byte at all, comments included: three keepalives of a server that sends one every 15 s."""
    first_backoff_s: float = 0.5
    """The first wait before reconnecting is anything up to this, so that a thousand clients don't come back at once."""
    backoff_max_s: float = 10.0
    """It doubles with each attempt up to this. A stream that lived for so long counts as a new beginning."""
    attempts: int = 8
    """Attempts in a row to go on with a stream: 37 s of waiting on average, a server's restart."""
    wait_max_s: float = 120.0
    """The longest wait that a server may ask for with `Retry-After` or `retry:`. Asked for more, the client gives up."""
    event_bytes: int = 40 << 20
    """One event. A replay has all of a part's text in one delta, up to the 32 MiB of a turn."""
    answer_bytes: int = 64 << 20
    """A chat's state, with all its messages."""
    trailer_s: float = 1.0
    """From an answer's last chunk to the end of its body: only then can the connection be used again."""
    refusal_bytes: int = 2 << 10
    """What is read of the sentence that comes with an error status."""
    refusal_s: float = 2.0
    """How long that may take."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """All of them."""

    wire: WireLimits = WireLimits()
    server: ServerLimits = ServerLimits()
    supervisor: SupervisorLimits = SupervisorLimits()
    connection: ConnectionLimits = ConnectionLimits()
    turn: TurnLimits = TurnLimits()
    viewer: ViewerLimits = ViewerLimits()
    hub: HubLimits = HubLimits()
    sqlite: SqliteLimits = SqliteLimits()
    redis: RedisLimits = RedisLimits()
    nats: NatsLimits = NatsLimits()
    relay: RelayLimits = RelayLimits()


WIRE = WireLimits()
"""The defaults of the sans-I/O floor, which takes no configuration from above."""

TOOLS = ToolLimits()
"""The defaults of `run_tools`."""

RELAY = RelayLimits()
"""The defaults of what is sans-I/O in `relay`."""
