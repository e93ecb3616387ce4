// The AI SDK's own way: streamText in front of the model, and its UI message stream as the response.
//
//     node node_route.mjs PORT UPSTREAM_PORT
import { createServer } from "node:http";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { convertToModelMessages, streamText } from "ai";

const provider = createOpenAICompatible({ name: "paced", baseURL: `http://127.0.0.1:${process.argv[3]}/v1` });

const server = createServer((request, response) => {
  let body = "";
  request.setEncoding("utf8");
  request.on("data", (piece) => (body += piece));
  request.on("end", async () => {
    const { messages } = JSON.parse(body);
    const gone = new AbortController();
    response.on("close", () => gone.abort());
    const result = streamText({
      model: provider("paced"),
      messages: await convertToModelMessages(messages),
      abortSignal: gone.signal,
      onError: () => {},
    });
    result.pipeUIMessageStreamToResponse(response);
  });
});
server.requestTimeout = 0;
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
process.on("SIGTERM", () => process.exit(0));
