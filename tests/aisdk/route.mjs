// A chat backend as people have it: routes of `ai` 6 and 7 with their mock models, which know nothing of a proxy.
//
// Prints its URL. `POST {url}/6` and `POST {url}/7` answer what the last user message asks for:
//     all               reasoning, a source, text, a tool that runs here, a second step, metadata at both ends
//     data              data parts round a model's stream, one after its `finish`
//     turns             a `start` of its own, then two streams merged, one after the other, each from `start` to `finish`
//     merged            two streams merged at the same time, each from `start` to `finish`
//     approve           a tool that the user has to allow, and what became of it
//     ask               a tool that the client executes, and what became of it
//     invalid           a tool input that isn't what the schema says, and what became of it
//     slow N            N words, one every 10 ms
//     error             an error in the middle of the stream
//     refuse            status 401 and a sentence
//     break             the connection breaks in the middle
// `GET {url}/requests` says what came: version, headers, the body's text, and whether the client aborted it.

import { setTimeout as sleep } from 'node:timers/promises';
import { createServer } from 'node:http';

const WORD_MS = 10;
const requests = [];

const V3 = { unified: 'stop', raw: undefined };
const TOOLS = { unified: 'tool-calls', raw: undefined };
const USAGE = {
  inputTokens: { total: 3, noCache: 3, cacheRead: undefined, cacheWrite: undefined },
  outputTokens: { total: 10, text: 10, reasoning: undefined },
};

const text = (id, ...deltas) => [
  { type: 'text-start', id },
  ...deltas.map(delta => ({ type: 'text-delta', id, delta })),
  { type: 'text-end', id },
];

const call = (toolName, input, toolCallId = `call-${toolName}`) => [
  { type: 'tool-input-start', id: toolCallId, toolName },
  ...input.match(/.{1,6}/g).map(delta => ({ type: 'tool-input-delta', id: toolCallId, delta })),
  { type: 'tool-input-end', id: toolCallId },
  { type: 'tool-call', toolCallId, toolName, input },
];

const stop = { type: 'finish', finishReason: V3, usage: USAGE };
const tools = { type: 'finish', finishReason: TOOLS, usage: USAGE };

function words(count, id) {
  return text(id, ...Array.from({ length: count }, (_, number) => `${number} `));
}

// What the model says, by what it is asked and whether it is told already what a tool came to; `id` is that of its text.
function says(question, told, id) {
  const [verb, count] = question.split(' ');
  if (told !== undefined) return [...text(id, 'The tool says: ', told), stop];
  switch (verb) {
    case 'all':
      return [
        { type: 'reasoning-start', id: 'r' },
        { type: 'reasoning-delta', id: 'r', delta: 'Hm, ' },
        { type: 'reasoning-delta', id: 'r', delta: 'well.' },
        { type: 'reasoning-end', id: 'r', providerMetadata: { mock: { signature: 'x' } } },
        { type: 'source', sourceType: 'url', id: 's', url: 'https://example.org/', title: 'An example' },
        ...text(id, 'Die naïve Forelle ', '🐟 schwamm ', 'stromauf.'),
        ...call('add', '{"a": 19, "b": 23}'),
        tools,
      ];
    case 'approve':
      return [...text(id, 'Shall I?'), ...call('delete', '{"file": "a"}'), tools];
    case 'ask':
      return [...call('locate', '{}'), tools];
    case 'invalid':
      return [...call('add', '{"a": "many"}'), tools];
    case 'slow':
      return [...words(Number(count), id), stop];
    case 'error':
      return [...text(id, 'So far, '), { type: 'error', error: new Error('secret') }];
    default:
      return [...text(id, 'You said ', question), stop];
  }
}

function told(prompt) {
  const last = prompt.at(-1);
  if (last.role !== 'tool') return undefined;
  return JSON.stringify(last.content.filter(part => part.type === 'tool-result').map(part => part.output));
}

async function route(version, request, signal, response) {
  const ai = await import(`ai${version}`);
  const test = await import(`ai${version}/test`);
  const { messages } = request;
  const asked = messages.findLast(message => message.role === 'user');
  const question = asked.parts.map(part => part.text ?? '').join('');
  if (question === 'refuse') return new Response('Your plan has no more answers.', { status: 401 });

  const Model = version === 6 ? test.MockLanguageModelV3 : test.MockLanguageModelV4;
  const model = (question, id) =>
    new Model({
      doStream: async ({ prompt }) => ({
        stream: test.simulateReadableStream({
          chunks: says(question, told(prompt), id),
          initialDelayInMs: null,
          chunkDelayInMs: question.startsWith('slow') || question === 'break' ? WORD_MS : null,
        }),
      }),
    });
  const schema = properties =>
    ai.jsonSchema(
      { type: 'object', properties, required: Object.keys(properties) },
      {
        validate: value =>
          Object.keys(properties).every(name => typeof value[name] === properties[name].type)
            ? { success: true, value }
            : { success: false, error: new Error('not of the type') },
      },
    );
  const converted = await ai.convertToModelMessages(messages);
  const ask = (question, id) =>
    ai.streamText({
      model: model(question, id),
      messages: converted,
      abortSignal: signal,
      stopWhen: ai.stepCountIs(3),
      onError: () => {},
      tools: {
        add: ai.tool({
          inputSchema: schema({ a: { type: 'number' }, b: { type: 'number' } }),
          execute: async ({ a, b }) => ({ sum: a + b }),
        }),
        delete: ai.tool({
          inputSchema: schema({ file: { type: 'string' } }),
          needsApproval: true,
          execute: async ({ file }) => `${file} is gone`,
        }),
        locate: ai.tool({ inputSchema: schema({}) }),
      },
    });
  const options = {
    originalMessages: messages,
    generateMessageId: () => `of-the-backend-${requests.length}`,
    sendReasoning: true,
    sendSources: true,
    messageMetadata: ({ part }) => {
      if (part.type === 'start') return { model: 'mock', nested: { at: 'start' } };
      if (part.type === 'finish') return { nested: { tokens: part.totalUsage.totalTokens } };
    },
  };
  if (question === 'turns' || question === 'merged') {
    const stream = ai.createUIMessageStream({
      originalMessages: messages,
      execute: async ({ writer }) => {
        if (question === 'merged') {
          writer.merge(ask('slow 20', 't').toUIMessageStream(options));
          writer.merge(ask('all', 'u').toUIMessageStream(options));
          return;
        }
        writer.write({ type: 'start', messageId: `of-the-backend-${requests.length}` });
        for (const part of [ask('all', 't'), ask('more', 'u')]) {
          writer.merge(part.toUIMessageStream(options));
          await part.consumeStream();
        }
      },
    });
    return ai.createUIMessageStreamResponse({ stream });
  }
  const result = ask(question, 't');
  if (question === 'data') {
    const stream = ai.createUIMessageStream({
      originalMessages: messages,
      execute: async ({ writer }) => {
        writer.write({ type: 'start', messageId: `of-the-backend-${requests.length}` });
        writer.write({ type: 'data-weather', id: 'w', data: { sun: 1 } });
        writer.write({ type: 'data-note', data: 'passing', transient: true });
        for await (const chunk of result.toUIMessageStream({ ...options, sendStart: false })) writer.write(chunk);
        writer.write({ type: 'data-weather', id: 'w', data: { rain: 2 } });
        writer.write({ type: 'data-title', data: 'At last' });
      },
    });
    return ai.createUIMessageStreamResponse({ stream });
  }
  return result.toUIMessageStreamResponse(options);
}

async function serve(request, response) {
  if (request.url === '/requests') {
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify(requests));
    return;
  }
  let body = '';
  for await (const piece of request.setEncoding('utf8')) body += piece;
  const version = Number(request.url.slice(1));
  const record = { version, headers: request.headers, body, aborted: false };
  requests.push(record);
  const abort = new AbortController();
  response.on('close', () => {
    record.aborted = !response.writableFinished;
    abort.abort();
  });
  const answer = await route(version, JSON.parse(body), abort.signal);
  response.writeHead(answer.status, Object.fromEntries(answer.headers));
  let sent = 0;
  for await (const piece of answer.body) {
    if (!response.write(piece)) await sleep(0);
    if (body.includes('"break"') && ++sent === 4) {
      await sleep(WORD_MS);
      response.destroy();
    }
    if (response.destroyed) return;
  }
  response.end();
}

const server = createServer((request, response) => {
  serve(request, response).catch(error => {
    console.error(error);
    response.destroy();
  });
});
server.listen(0, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`));
