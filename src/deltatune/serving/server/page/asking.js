// What is asked of which route: it follows from the adapter's task.

import { post, stream } from "./api.js";
import { labels, marked, tagged } from "./answers.js";
import { element } from "./element.js";

// Kinds of answers by the name of the task; all others write text.
const KINDS = {
  classify: "labels", many: "labels", "soft-labels": "labels", "label-words": "labels", "nearest-demonstrations": "labels",
  tag: "tags", span: "span",
};
const TRAINED_FORM = new Set(["generate", "reason"]);

// The kind of answer that models give together: what was asked for, or what they were trained for; "text" where they
// differ or do not say.
export function kindOf(models, form) {
  if (form === "labels" || form === "tags" || form === "span") return form;
  if (form !== "auto") return "text";
  const kinds = new Set(models.map((model) => KINDS[model.task] || "text"));
  return kinds.size === 1 ? [...kinds][0] : "text";
}

function weightsOf(sides) {
  const weights = {};
  for (const { model, weight } of sides) {
    if (model.task !== "base") weights[model.id] = (weights[model.id] || 0) + weight;
  }
  return weights;
}

export function namesOf(sides) {
  return sides.map(({ model, weight }) => (model.task === "base" ? model.id : `${model.id} × ${weight}`)).join(" + ");
}

// Ask, and show the answer in `target` as it comes. Gives {total, first, tokens} in milliseconds and tokens.
export async function ask(sides, given, target, signal) {
  const began = performance.now();
  const weights = weightsOf(sides);
  const chosen = Object.keys(weights).length ? { model: "base", adapters: weights } : { model: "base" };
  const adapters = sides.filter((side) => side.model.task !== "base");
  const kind = kindOf((adapters.length ? adapters : sides).map((side) => side.model), given.form);
  if (kind === "text") return written(sides, chosen, given, target, signal, began);
  const part = given.part ? { part: given.part } : {};
  const rows = {
    labels: { input: given.second ? [[given.text, given.second]] : given.text },
    tags: { input: given.text },
    span: { question: given.question, context: given.text },
  };
  const routes = { labels: "/v1/classify", tags: "/v1/tag", span: "/v1/answer" };
  const answer = (await post(routes[kind], { ...chosen, ...rows[kind], ...part }, signal)).data[0];
  const shown = { labels, tags: tagged, span: (value) => marked(value, given.text) }[kind](answer);
  target.replaceChildren(shown);
  return { total: performance.now() - began, first: null, tokens: null };
}

async function written(sides, chosen, given, target, signal, began) {
  const text = element("p", { class: "written" });
  target.replaceChildren(text);
  const trained = given.form === "auto" && sides.some((side) => TRAINED_FORM.has(side.model.task));
  const chat = given.form === "chat";
  const number = (name, text, otherwise) => (text !== "" ? { [name]: Number(text) } : trained ? {} : { [name]: otherwise });
  const body = {
    ...chosen, ...number("max_tokens", given.tokens, 64), ...number("temperature", given.temperature, 0), stream: true,
    stream_options: { include_usage: true },
    ...(chat ? { messages: [{ role: "user", content: given.text }] } : trained ? { input: given.text } : { prompt: given.text }),
  };
  let first = null;
  let tokens = null;
  try {
    for await (const part of stream(chat ? "/v1/chat/completions" : "/v1/completions", body, signal)) {
      const choice = part.choices[0];
      const piece = choice ? (chat ? choice.delta.content : choice.text) || "" : "";
      if (piece && first === null) first = performance.now() - began;
      if (piece) text.append(piece);
      if (part.usage) tokens = part.usage.completion_tokens;
    }
    if (!text.textContent) target.append(element("p", { class: "hint" }, "the answer is empty"));
  } finally {
    if (!text.textContent) text.remove();
  }
  return { total: performance.now() - began, first, tokens };
}
