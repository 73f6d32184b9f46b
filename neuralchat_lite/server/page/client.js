// The server, as the page sees it: the models, and the answer to a chat in pieces.

export class Refusal extends Error {
  // status: of HTTP, or 0 where no answer came; message: words for the reader
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// The address of the page may have a prefix (a proxy's), so paths are relative to it.
const address = (path) => new URL(path, document.baseURI);

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

const UNREACHED = "The server does not answer. Is it running, and is the network up?";

async function request(path, options) {
  let response;
  try {
    response = await fetch(address(path), options);
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Refusal(UNREACHED);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

// What the server says in OpenAI's form, or its status where it says nothing that can be read.
async function refusal(response) {
  let said = "";
  try {
    said = wordsOf((await response.json()).error);
  } catch {
    // not JSON: a proxy's page
  }
  const wait = response.headers.get("Retry-After");
  const later = response.status === 429 && wait ? ` Try again in ${wait} s.` : "";
  const plain = `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  return new Refusal((said || plain) + later, response.status);
}

const wordsOf = (error) => (typeof error === "string" ? error : (error?.message ?? ""));

// [{id, max_model_len?}]
export async function models(key) {
  const response = await request("v1/models", { headers: headers(key) });
  return (await response.json()).data;
}

// Yields {text?, reasoning?, finish?, usage?, timings?}. Aborting the signal ends it with AbortError.
export async function* answer(body, key, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refusal(wordsOf(chunk.error) || "The server ended the answer.");
    const choice = chunk.choices?.[0];
    yield {
      text: choice?.delta?.content ?? "",
      reasoning: choice?.delta?.reasoning_content ?? choice?.delta?.reasoning ?? "",
      finish: choice?.finish_reason ?? null,
      usage: chunk.usage ?? null,
      timings: chunk.timings ?? null,
    };
  }
  throw new Refusal("The connection ended before the answer did.");
}

// The data of each server-sent event. Comments (pings) and other fields pass unseen.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch (problem) {
        if (problem.name === "AbortError") throw problem;
        throw new Refusal("The connection broke before the answer ended.");
      }
      if (piece.done) return;
      const lines = (rest + piece.value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((line) => line.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
