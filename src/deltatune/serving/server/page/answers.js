// Answers as people read them: written text, labels with bars, tagged words, a marked part of a text.

import { element } from "./element.js";

const COLOURS = 10;
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const seconds = (time) => (time < 1000 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(time < 10000 ? 2 : 1)} s`);

// "first token 120 ms · 2.10 s in all · 31.2 tokens/s": what is not known is left out. Times in milliseconds.
export function figures(total, first, tokens) {
  const parts = [];
  if (first !== null) parts.push(`first token ${seconds(first)}`);
  parts.push(`${seconds(total)} in all`);
  if (tokens !== null && first !== null) {
    parts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
    if (tokens > 1 && total > first) parts.push(`${((1000 * (tokens - 1)) / (total - first)).toFixed(1)} tokens/s`);
  }
  return parts.join(" · ");
}

export function labels(answer) {
  if (!answer.scores) return element("p", { class: "number" }, Number(answer.score).toPrecision(4));
  const chosen = new Set(Array.isArray(answer.labels) ? answer.labels : [answer.label]);
  const sorted = Object.entries(answer.scores).sort((one, other) => other[1] - one[1]);
  const rows = sorted.slice(0, 12).map(([label, share]) => {
    const bar = element("span");
    bar.style.width = `${Math.max(0, Math.min(100, 100 * share))}%`;
    return element(
      "li",
      { class: chosen.has(label) ? "best" : undefined },
      element("b", {}, label),
      element("span", {}, percent(share)),
      element("i", { "aria-hidden": "true" }, bar),
    );
  });
  const left = sorted.length - rows.length;
  if (left > 0) rows.push(element("li", {}, element("b", {}, `and ${left} more labels`)));
  return element("ul", { class: "bars" }, ...rows);
}

// Each type of tag has a colour, in the order of appearance.
function colours() {
  const known = new Map();
  return (type) => {
    if (!known.has(type)) known.set(type, known.size % COLOURS);
    return `s${known.get(type)}`;
  };
}

export function tagged(answer) {
  const colour = colours();
  const parts = [];
  if (answer.spans.length || answer.tags.every((tag) => tag === "O")) {
    let next = 0;
    for (const span of answer.spans) {
      parts.push(answer.tokens.slice(next, span.first_word).join(" ") + " ");
      const words = answer.tokens.slice(span.first_word, span.last_word + 1).join(" ");
      parts.push(element("mark", { class: colour(span.type) }, words, " ", element("small", {}, span.type)), " ");
      next = span.last_word + 1;
    }
    parts.push(answer.tokens.slice(next).join(" "));
    const none = answer.spans.length ? null : element("p", { class: "hint" }, "nothing is marked");
    return element("div", {}, element("p", { class: "tagged" }, ...parts), none);
  }
  answer.tokens.forEach((token, place) => {
    const tag = answer.tags[place];
    parts.push(element("span", { class: `token ${colour(tag)}` }, token, " ", element("small", {}, tag)));
  });
  return element("div", {}, ...parts);
}

// Places count characters as Python does; JavaScript's strings count UTF-16 units.
export function marked(answer, context) {
  const letters = [...context];
  if (!answer.answer) return element("p", { class: "found" }, "no answer in the text");
  const [before, inside, after] = [
    letters.slice(0, answer.start), letters.slice(answer.start, answer.end), letters.slice(answer.end),
  ].map((part) => part.join(""));
  return element(
    "div", {},
    element("p", { class: "found" }, answer.answer),
    element("p", { class: "context" }, before, element("mark", {}, inside), after),
  );
}
