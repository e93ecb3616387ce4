// Chats over a WebSocket with the package `ws` and nothing of the AI SDK's.
// usage: node plain_socket.mjs URL     says `ready` on stdout, then what it saw once the server has closed
import { WebSocket } from 'ws';

const url = process.argv[2];
const socket = new WebSocket(url, ['chat', 'other'], { maxPayload: 1 << 20 });
const frames = [];
const pongs = [];
let waiting = [];
const of = requestId => frames.filter(frame => frame.requestId === requestId);
const until = done => new Promise(resolve => (done() ? resolve() : waiting.push([done, resolve])));
const check = () => {
  const ready = waiting.filter(([done]) => done());
  waiting = waiting.filter(each => !ready.includes(each));
  for (const [, resolve] of ready) resolve();
};
socket.on('message', (data, isBinary) => {
  if (isBinary) throw new Error('a binary message');
  frames.push(JSON.parse(data));
  check();
});
socket.on('pong', data => {
  pongs.push(String(data));
  check();
});
const closed = new Promise(resolve => socket.on('close', (code, reason) => resolve([code, String(reason)])));
await new Promise((resolve, reject) => socket.on('open', resolve).on('error', reject));

const message = { id: 'u1', role: 'user', parts: [{ type: 'text', text: 'Hello' }] };
const ended = requestId => until(() => of(requestId).some(frame => frame.type === 'end'));
socket.send(JSON.stringify({ type: 'send', requestId: '1', id: 'ws', messages: [message] }));
await ended('1');
const chunks = of('1').filter(frame => frame.type === 'chunk');
socket.send(Buffer.from(JSON.stringify({ type: 'resume', requestId: '2', id: 'ws', after: chunks[2].position })));
await ended('2');
socket.ping('there?');
await until(() => pongs.length > 0);
console.log('ready');
const [code, reason] = await closed;
console.log(JSON.stringify({ protocol: socket.protocol, extensions: socket.extensions, frames, pongs, code, reason }));
