// The page: two models with weights, one text, and their answers side by side.

import { ApiError, get, saveKey, savedKey } from "./api.js";
import { figures } from "./answers.js";
import { ask, kindOf, namesOf } from "./asking.js";
import { byId, element } from "./element.js";
import { Picker } from "./picker.js";

const LARGEST = 1.5;
const TASKS = {
  base: "no adapter", classify: "labels", many: "several labels", "label-words": "labels", tag: "tags", span: "answers in a text",
  generate: "writes", lm: "writes", mixture: "several tasks",
};

class Side {
  constructor(letter) {
    this.letter = letter;
    const name = letter.toLowerCase();
    this.picker = new Picker(`adapter-${name}`, "Adapter", () => update());
    this.slider = element("input", {
      type: "range", id: `weight-${name}`, min: "0", max: String(LARGEST), step: "0.05", value: "1",
    });
    this.output = element("output", { for: `weight-${name}` });
    this.slider.addEventListener("input", () => this.show());
    const label = element("label", { for: `weight-${name}` }, "Weight");
    byId(`side-${name}`).append(this.picker.node, element("div", { class: "weight" }, label, this.slider, this.output));
    this.show();
  }

  get weight() {
    return Number(this.slider.value);
  }

  get model() {
    return this.picker.chosen;
  }

  show() {
    this.output.value = this.weight.toFixed(2);
    this.slider.disabled = !this.model || this.model.task === "base";
  }
}

let running = null;
const sides = [new Side("A"), new Side("B")];
const mode = () => document.querySelector("[name=mode]:checked").value;

// What the chosen models need: a question, a second text, another word for the text.
function update() {
  if (sides.length < 2) return;
  for (const side of sides) side.show();
  const kinds = sides.filter((side) => side.model).map((side) => kindOf([side.model], byId("form").value));
  byId("question-field").hidden = !kinds.includes("span");
  byId("second-field").hidden = !kinds.includes("labels");
  const words = { span: "Text with the answer", labels: "Text", tags: "Text", text: "Prompt" };
  byId("text-label").textContent = new Set(kinds).size === 1 ? words[kinds[0]] : "Prompt or text";
}

function about(model) {
  return [TASKS[model.task] || model.task, model.method].filter(Boolean).join(" · ");
}

function problem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

async function loadModels() {
  problem("");
  try {
    const { data } = await get("/v1/models");
    const models = data.map((each) => {
      const model = { id: String(each.id), task: each.parent ? each.task : "base", method: each.method, root: each.root };
      return { ...model, about: about(model) };
    });
    const count = models.filter((model) => model.task !== "base").length;
    const base = models.find((model) => model.task === "base");
    const facts = [["Model", base ? base.root : "–"], ["Adapters", count.toLocaleString("en")]];
    byId("facts").replaceChildren(
      ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
    );
    sides[0].picker.setModels(models, count ? (base ? 1 : 0) : 0);
    sides[1].picker.setModels(models, count > 1 ? (base ? 2 : 1) : 0);
    byId("access").hidden = !savedKey();
    if (!models.length) problem("This key may use no model that is there.");
  } catch (error) {
    byId("access").hidden = error.status !== 401 && !savedKey();
    problem(error.status === 401 && !savedKey() ? "This server needs an API key." : error.message);
    if (error.status === 401) byId("key").focus();
  }
}

function given() {
  const value = (id) => byId(id).value;
  return {
    text: value("text"), question: value("question"), second: byId("second-field").hidden ? "" : value("second"), part: value("part").trim(),
    form: value("form"), tokens: value("tokens"), temperature: value("temperature"),
  };
}

async function one(letters, asked, article, signal) {
  const target = article.querySelector(".answer");
  const line = article.querySelector(".figures");
  try {
    const { total, first, tokens } = await ask(asked, given(), target, signal);
    line.textContent = figures(total, first, tokens);
    return `${letters} has answered`;
  } catch (error) {
    if (error.name === "AbortError") {
      line.textContent = "stopped";
      return `${letters} was stopped`;
    }
    if (!(error instanceof ApiError)) console.error(error);
    line.textContent = "";
    const again = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    target.append(element("p", { class: "error" }, error.message + again));
    if (error.status === 401) {
      byId("access").hidden = false;
      byId("key").focus();
    }
    return `${letters} failed: ${error.message}`;
  } finally {
    article.setAttribute("aria-busy", "false");
  }
}

async function askAll() {
  if (running || sides.some((side) => !side.model)) return;
  const groups = mode() === "together" ? [["A and B", "both", sides]] : sides.map((side) => [side.letter, side.letter.toLowerCase(), [side]]);
  const controller = (running = new AbortController());
  byId("send").disabled = true;
  byId("stop").disabled = false;
  const articles = groups.map(([letters, kind, asked]) =>
    element(
      "article", { class: kind, "aria-busy": "true", "aria-labelledby": `title-${kind}` },
      element("h2", { id: `title-${kind}` }, `${letters}: ${namesOf(asked)}`),
      element("div", { class: "answer" }), element("p", { class: "figures" }, "…"),
    ),
  );
  byId("answers").replaceChildren(...articles);
  byId("announcer").textContent = "";
  const ends = await Promise.all(groups.map(([letters, , asked], place) => one(letters, asked, articles[place], controller.signal)));
  running = null;
  byId("send").disabled = false;
  byId("stop").disabled = true;
  byId("announcer").textContent = `${ends.join("; ")}.`;
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  askAll();
});
byId("stop").addEventListener("click", () => running && running.abort());
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    askAll();
  }
});
byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  saveKey(byId("key").value.trim());
  loadModels();
});
byId("form").addEventListener("change", update);

const themes = ["auto", "light", "dark"];
const button = byId("theme");
button.hidden = false;
button.addEventListener("click", () => {
  const root = document.documentElement;
  const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
  if (next === "auto") delete root.dataset.theme;
  else root.dataset.theme = next;
  button.textContent = `Theme: ${next}`;
});

byId("key").value = savedKey();
update();
loadModels();
