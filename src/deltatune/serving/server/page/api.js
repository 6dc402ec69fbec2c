// Requests to the server. What it answers is data: pages put it into the document as text alone.

const STORED = "deltatune.key";

export const savedKey = () => sessionStorage.getItem(STORED) || "";

export function saveKey(key) {
  if (key) sessionStorage.setItem(STORED, key);
  else sessionStorage.removeItem(STORED);
}

export class ApiError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function call(path, body, signal) {
  const headers = savedKey() ? { Authorization: "Bearer " + savedKey() } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer.", null);
  }
  if (answer.ok) return answer;
  let message = `The server answered with status ${answer.status}.`;
  try {
    message = String((await answer.json()).error.message);
  } catch {
    // An answer of another form, such as a proxy's, has no message of its own.
  }
  throw new ApiError(answer.status, message, answer.headers.get("Retry-After"));
}

export const get = async (path, signal) => (await call(path, undefined, signal)).json();
export const post = async (path, body, signal) => (await call(path, body, signal)).json();

// Parts of a streamed answer, each the parsed JSON of one event.
export async function* stream(path, body, signal) {
  const answer = await call(path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ApiError(0, "The server broke off in the middle of its answer.", null);
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const text = line.slice(5).trim();
        if (text === "[DONE]") return;
        const part = JSON.parse(text);
        if (part.error) throw new ApiError(200, String(part.error.message), null);
        yield part;
      }
    }
  } catch (error) {
    if (error instanceof TypeError) throw new ApiError(0, "The server broke off in the middle of its answer.", null);
    throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
}
