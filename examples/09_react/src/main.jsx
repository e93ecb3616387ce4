// An unmodified useChat, over SSE or, with ?socket in the address, over a WebSocket. Reload in the middle of an answer:
// `resume` asks for the turn that is running, and it goes on where it is.
import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport, WebSocketChatTransport } from "ai";
import { useState } from "react";
import { createRoot } from "react-dom/client";

const page = new URL(location.href);
const transport = page.searchParams.has("socket")
  ? new WebSocketChatTransport({ url: "/api/chat/ws" })
  : // Say the version, and penstock sends the chunk kinds that only 7 knows, too.
    new DefaultChatTransport({ api: "/api/chat?sdk=7" });

// The chat's id is in the address, so that a reload is the same chat and a second tab may join it.
if (!page.searchParams.has("chat")) {
  page.searchParams.set("chat", crypto.randomUUID());
  history.replaceState(null, "", page);
}
const id = page.searchParams.get("chat");

function Chat() {
  const { messages, sendMessage, stop, status, error } = useChat({ id, transport, resume: true });
  const [text, setText] = useState("");
  const busy = status === "submitted" || status === "streaming";

  // `stop()` only lets go of the stream; whoever pays for the tokens wants the turn to end.
  async function stopTurn() {
    await fetch(`/api/chat/${id}/stop`, { method: "POST" });
    stop();
  }

  function submit(event) {
    event.preventDefault();
    if (!text.trim() || busy) return;
    sendMessage({ text });
    setText("");
  }

  return (
    <main>
      {messages.map((message) => (
        <p key={message.id} className={message.role}>
          {message.parts.map((part, index) => (part.type === "text" ? <span key={index}>{part.text}</span> : null))}
        </p>
      ))}
      {error && <p role="alert">{error.message}</p>}
      <form onSubmit={submit}>
        <input value={text} onChange={(event) => setText(event.target.value)} aria-label="Message" autoFocus />
        {busy ? (
          <button type="button" onClick={stopTurn}>Stop</button>
        ) : (
          <button type="submit">Send</button>
        )}
        <output>{status}</output>
      </form>
    </main>
  );
}

createRoot(document.getElementById("root")).render(<Chat />);
