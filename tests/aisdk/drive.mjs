// Drives the real client of `ai` 5, 6 or 7 as useChat would, and says what came of it.
//
// Reads one JSON job from stdin and writes one JSON result to stdout; of an array of jobs, which run side by side, an array
// of results. Exit code 0 unless the driver itself broke.
//
// {version, url, text?, chatId?, messages?, headers?, body?, resume?, deadlineS?}
//     One request over HTTP: a message with `text`, or with `resume` a reconnect. Of the result, `responses` is what
//     the wire said, read beside the client: status, headers, the text, its chunks, and which of them (`invalid`) the
//     version's own schema refuses.
// {assemble: [{version, chunks}…], deadlineS?}
//     No network: each list of chunks becomes the body of a response. A result for each, in the same form but for
//     `responses`.
// {version, url, chatId, visit: [step…], transport?, headers?, deadlineS?}
//     A user's visit to one chat, which is pages, one after the other. Of the result, `steps` has for each step what the
//     page shows after it: status, error and messages; `requests` has what was asked for: method, path, status and run.
//     {do: 'send', text, until?}      sends a message and waits for the end of the answer, or only for so many chunks
//     {do: 'settle'}                  waits for that end
//     {do: 'resume'}                  resumeStream()
//     {do: 'approve', approved, reason?}   answers the approval that is asked for, and waits for the end
//     {do: 'output', output}          gives the output of the tool call that waits for one, and waits for the end
//     {do: 'leave'}                   stop(), as a page does that goes away
//     {do: 'reload', without?}        a new page, with the messages that the server has; `without` the answer to the last
//     {do: 'begun'}                   until the server has a turn of this chat
//     {do: 'wait', state}             until the server says that the turn is in this state; it may be away meanwhile
//     {do: 'stop'}                    tells the server to stop the turn
//     {do: 'closed'}                  until all sockets are closed
//     A step may have a `body`, fields that its requests add, and `cuts`: its first responses break as those of a lost
//     network do, after so many chunks, when the client has dealt with these; or they end there, with {after, ends: true}.
//     `transport: 'workflow'` is the one of @ai-sdk/workflow; `transport: 'workflow run'` remembers a run over a reload.
//     `transport: 'websocket'` is the one of `ai` 7 over the package `ws`; jobs with the same `socket` share one. Of the
//     result, `sockets` has the close code of each that was opened, null while it is open.

import { setImmediate as breathe, setTimeout as sleep } from 'node:timers/promises';
import { WebSocket } from 'ws';

const POLL_MS = 5;
const AT_ONCE = 24;
const modules = new Map();

async function load(version) {
  if (!modules.has(version)) modules.set(version, await import(`ai${version}`));
  return modules.get(version);
}

// A schema's refusal explains itself at length.
function brief(error) {
  return String(error.message).slice(0, 300);
}

// What useChat keeps: a message that is replaced is a snapshot, one that is pushed is not.
class State {
  status = 'ready';
  error = undefined;

  constructor(messages) {
    this.messages = messages;
  }

  pushMessage = message => {
    this.messages = [...this.messages, message];
  };

  popMessage = () => {
    this.messages = this.messages.slice(0, -1);
  };

  replaceMessage = (index, message) => {
    this.messages = [...this.messages.slice(0, index), this.snapshot(message), ...this.messages.slice(index + 1)];
  };

  snapshot = value => structuredClone(value);
}

async function chat(job, fetch, deadline) {
  const { AbstractChat, DefaultChatTransport } = await load(job.version);
  const result = { timedOut: false, finish: [], errors: [], data: [], toolCalls: [] };
  const state = new State(job.messages ?? []);
  let ids = 0;

  class Chat extends AbstractChat {}
  const client = new Chat({
    id: job.chatId ?? 'chat',
    generateId: () => `made-up-${++ids}`,
    state,
    transport: new DefaultChatTransport({ api: job.url, headers: job.headers, body: job.body, fetch }),
    onFinish: finish => result.finish.push(structuredClone(finish)),
    onError: error => result.errors.push(brief(error)),
    onData: part => result.data.push(structuredClone(part)),
    onToolCall: ({ toolCall }) => {
      result.toolCalls.push(structuredClone(toolCall));
    },
  });
  const done = job.resume ? client.resumeStream() : client.sendMessage({ text: job.text ?? '' });
  await Promise.race([done, deadline.then(() => (result.timedOut = true))]);
  if (result.timedOut) await client.stop();
  return Object.assign(result, {
    status: client.status,
    error: client.error === undefined ? null : brief(client.error),
    messages: structuredClone(state.messages),
  });
}

// The body goes to the client, and a copy of it to us.
function recorder(responses) {
  return async (url, init) => {
    const response = await fetch(url, init);
    const record = { status: response.status, headers: Object.fromEntries(response.headers), text: '', bodyError: null };
    responses.push(record);
    if (response.body === null) {
      record.read = Promise.resolve();
      return response;
    }
    const [theirs, ours] = response.body.tee();
    record.read = (async () => {
      try {
        for await (const text of ours.pipeThrough(new TextDecoderStream())) record.text += text;
      } catch (error) {
        record.bodyError = error.message;
      }
    })();
    return new Response(theirs, response);
  };
}

// The schema is asked about each chunk, and not only up to the first that it refuses.
async function judge(record, version) {
  const { parseJsonEventStream, uiMessageChunkSchema } = await load(version);
  record.chunks = [];
  record.invalid = [];
  if (!(record.headers['content-type'] ?? '').startsWith('text/event-stream')) return;
  const stream = new Blob([record.text]).stream();
  for await (const parsed of parseJsonEventStream({ stream, schema: uiMessageChunkSchema })) {
    if (!parsed.success) record.invalid.push({ index: record.chunks.length, error: brief(parsed.error) });
    record.chunks.push(parsed.rawValue ?? null);
  }
}

function canned(chunks) {
  const body = chunks.map(chunk => `data: ${JSON.stringify(chunk)}\n\n`).join('') + 'data: [DONE]\n\n';
  return async () => new Response(body, { headers: { 'content-type': 'text/event-stream' } });
}

async function run(job) {
  const deadline = new Promise(resolve => setTimeout(resolve, (job.deadlineS ?? 30) * 1000).unref());
  if (job.assemble) {
    const results = [];
    for (const { version, chunks } of job.assemble) {
      results.push(await chat({ version, text: 'Hello', url: 'http://memory' }, canned(chunks), deadline));
    }
    return results;
  }
  if (job.visit) return new Visit(job).result(deadline);
  const responses = [];
  const result = await chat(job, recorder(responses), deadline);
  for (const record of responses) {
    await Promise.race([record.read, deadline]);
    delete record.read;
    await judge(record, job.version);
  }
  return { ...result, responses };
}

// A response's body up to some chunk. It is not known to end, or to break, before the client has dealt with all of that.
function cutOff(body, cut, dealtWith) {
  const { after, ends } = typeof cut === 'number' ? { after: cut, ends: false } : cut;
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const encoder = new TextEncoder();
  let text = '';
  let passed = 0;
  return new ReadableStream(
    {
      async pull(controller) {
        while (passed < after) {
          const end = text.indexOf('\n\n') + 2;
          if (end > 1) {
            const event = text.slice(0, end);
            text = text.slice(end);
            if (/^data: /m.test(event)) passed += 1;
            controller.enqueue(encoder.encode(event));
            return;
          }
          const { done, value } = await reader.read();
          if (done) throw new Error(`the answer has only ${passed} chunks`);
          text += value;
        }
        await dealtWith(after);
        await reader.cancel();
        if (ends) controller.close();
        else controller.error(new TypeError('terminated'));
      },
      cancel: reason => reader.cancel(reason),
    },
    { highWaterMark: 0 },
  );
}

// A WebSocket that is lost, as a network loses one, after so many chunks of a request.
class LosingSocket extends WebSocket {
  chunks = new Map();

  constructor(url, protocols, visit) {
    super(url, protocols);
    this.visit = visit;
    const index = visit.sockets.push(null) - 1;
    this.on('close', code => (visit.sockets[index] = code));
  }

  send(text) {
    const { type, requestId } = JSON.parse(text);
    if (type !== 'abort') this.chunks.set(requestId, this.visit.cuts.shift());
    super.send(text);
  }

  get onmessage() {
    return super.onmessage;
  }

  set onmessage(listener) {
    super.onmessage = event => {
      if (this.readyState !== WebSocket.OPEN) return;
      listener(event);
      const { type, requestId } = JSON.parse(event.data);
      const left = this.chunks.get(requestId) - (type === 'chunk');
      this.chunks.set(requestId, left);
      if (left === 0) this.terminate();
    };
  }
}

const shared = new Map();

class Visit {
  requests = [];
  sockets = [];
  seen = 0;
  cuts = [];
  body = {};
  run = undefined;
  ids = 0;

  constructor(job) {
    this.job = job;
  }

  async result(deadline) {
    await this.open([]);
    const steps = [];
    for (const step of this.job.visit) {
      this.cuts = [...(step.cuts ?? [])];
      this.body = step.body ?? {};
      this.seen = 0;
      const late = deadline.then(() => {
        throw new Error(`${this.job.chatId} did not get beyond ${JSON.stringify(step)}: ${JSON.stringify(this.requests)}`);
      });
      await Promise.race([this[step.do](step), late]);
      const { status, error, messages } = this.client;
      steps.push({ status, error: error === undefined ? null : brief(error), messages: structuredClone(messages) });
    }
    return { steps, requests: this.requests, sockets: this.sockets };
  }

  async open(messages) {
    const ai = await load(this.job.version);
    class Chat extends ai.AbstractChat {}
    this.finished = 0;
    this.gaveOutput = false;
    this.client = new Chat({
      id: this.job.chatId,
      generateId: () => `made-up-${++this.ids}`,
      state: new State(messages),
      transport: this.counting(await this.transport()),
      sendAutomaticallyWhen: state =>
        ai.lastAssistantMessageIsCompleteWithApprovalResponses?.(state) ||
        (this.gaveOutput && ai.lastAssistantMessageIsCompleteWithToolCalls(state)),
      onFinish: () => {
        this.finished += 1;
      },
    });
  }

  async transport() {
    const { url, headers, version, socket } = this.job;
    if (this.job.transport === 'websocket') {
      const { WebSocketChatTransport } = await load(version);
      const visit = this;
      const webSocket = function (url, protocols) {
        return new LosingSocket(url, protocols, visit);
      };
      if (!shared.has(socket)) {
        const transport = new WebSocketChatTransport({ url: `${url}/ws`, headers, body: () => this.body, webSocket });
        shared.set(socket ?? this, transport);
      }
      return shared.get(socket ?? this);
    }
    if (!this.job.transport) {
      const { DefaultChatTransport } = await load(version);
      return new DefaultChatTransport({ api: url, headers, body: () => this.body, fetch: this.fetch });
    }
    const { WorkflowChatTransport } = await import('@ai-sdk/workflow/client');
    return new WorkflowChatTransport({
      api: url,
      fetch: this.fetch,
      prepareSendMessagesRequest: ({ id, messages, trigger, messageId }) => ({
        headers: { ...headers, 'content-type': 'application/json' },
        body: { ...this.body, id, messages, trigger, messageId },
      }),
      prepareReconnectToStreamRequest:
        this.job.transport === 'workflow run' ? () => ({ api: `${url}/${this.run}/stream` }) : undefined,
    });
  }

  // The transport itself, but we see each chunk just before the client does.
  counting(transport) {
    const counted = stream =>
      stream?.pipeThrough(
        new TransformStream({
          transform: (chunk, controller) => {
            this.seen += 1;
            controller.enqueue(chunk);
          },
        }),
      ) ?? null;
    return new Proxy(transport, {
      get: (target, name) =>
        name === 'sendMessages' || name === 'reconnectToStream'
          ? async options => counted(await target[name](options))
          : Reflect.get(target, name),
    });
  }

  fetch = async (url, init) => {
    const before = this.seen;
    const cut = this.cuts.shift();
    const response = await fetch(url, init);
    const { pathname, search } = new URL(url);
    this.run = response.headers.get('x-workflow-run-id') ?? this.run;
    this.requests.push({ method: init?.method ?? 'GET', path: pathname + search, status: response.status, run: this.run });
    if (cut === undefined || response.body === null) return response;
    const dealtWith = async count => {
      while (this.seen < before + count) await sleep(1);
      // All that follows from a chunk is done in microtasks.
      for (let turn = 0; turn < 3; turn++) await breathe();
    };
    return new Response(cutOff(response.body, cut, dealtWith), response);
  };

  async state() {
    const response = await fetch(`${this.job.url}/${this.job.chatId}`);
    if (!response.ok) throw new Error(await response.text());
    return response.json();
  }

  async send({ text, until }) {
    this.answer = this.client.sendMessage({ text });
    if (until === undefined) await this.answer;
    else while (this.seen < until) await sleep(POLL_MS);
  }

  async settle() {
    await this.answer;
  }

  async resume() {
    await this.client.resumeStream();
  }

  async approve({ approved, reason }) {
    const parts = this.client.messages.flatMap(message => message.parts);
    const part = parts.find(each => each.state === 'approval-requested');
    const before = this.finished;
    await this.client.addToolApprovalResponse({ id: part.approval.id, approved, reason });
    while (this.finished === before) await sleep(POLL_MS);
  }

  async output({ output }) {
    const parts = this.client.messages.flatMap(message => message.parts);
    const { type, toolCallId } = parts.find(each => each.state === 'input-available');
    const before = this.finished;
    this.gaveOutput = true;
    await this.client.addToolOutput({ tool: type.slice('tool-'.length), toolCallId, output });
    while (this.finished === before) await sleep(POLL_MS);
  }

  async leave() {
    await this.client.stop();
    await this.answer;
  }

  async reload({ without }) {
    const { messages, turn } = await this.state();
    await this.open(without ? messages.filter(message => message.id !== turn?.id) : messages);
  }

  async begun() {
    while (!(await fetch(`${this.job.url}/${this.job.chatId}`)).ok) await sleep(POLL_MS);
  }

  async wait({ state }) {
    const away = error => {
      if (!(error instanceof TypeError)) throw error;
    };
    while ((await this.state().catch(away))?.turn.state !== state) await sleep(POLL_MS);
  }

  async closed() {
    while (this.sockets.includes(null)) await sleep(POLL_MS);
  }

  async stop() {
    const response = await fetch(`${this.job.url}/${this.job.chatId}/stop`, { method: 'POST' });
    if (!response.ok) throw new Error(await response.text());
  }
}

async function all(jobs) {
  const results = [];
  const left = jobs.entries();
  const worker = async () => {
    for (const [index, job] of left) results[index] = await run(job);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return results;
}

let input = '';
for await (const text of process.stdin.setEncoding('utf8')) input += text;
const job = JSON.parse(input);
const result = await (Array.isArray(job) ? all(job) : run(job));
process.stdout.write(JSON.stringify(result), () => process.exit(0));
