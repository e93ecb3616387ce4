// Drives the real client of `ai` 5, 6 or 7 as useChat would, and says what came of it.
//
// Reads one JSON job from stdin and writes one JSON result to stdout; of an array of jobs, which run at the same time, an
// array of results. Exit code 0 unless the driver itself broke.
//
// {version, url, text?, chatId?, messages?, headers?, body?, resume?, deadlineS?}
//     One request over HTTP: a message with `text`, or with `resume` a reconnect. Of the result, `responses` is what
//     the wire said, read beside the client: status, headers, the text, its chunks, and which of them (`invalid`) the
//     version's own schema refuses.
// {assemble: [{version, chunks}…], deadlineS?}
//     No network: each list of chunks becomes the body of a response. A result for each, in the same form but for
//     `responses`.

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
  const responses = [];
  const result = await chat(job, recorder(responses), deadline);
  for (const record of responses) {
    await Promise.race([record.read, deadline]);
    delete record.read;
    await judge(record, job.version);
  }
  return { ...result, responses };
}

let input = '';
for await (const text of process.stdin.setEncoding('utf8')) input += text;
const job = JSON.parse(input);
const result = await (Array.isArray(job) ? Promise.all(job.map(run)) : run(job));
process.stdout.write(JSON.stringify(result), () => process.exit(0));
