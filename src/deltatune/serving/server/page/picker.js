// A field that finds one of many models by name, task or method: a combobox as WAI-ARIA describes it.

import { element } from "./element.js";

const SHOWN = 50;
const PAGE = 8;

export class Picker {
  // models: objects with id, task and method. onChange is called with the chosen one.
  constructor(name, label, onChange) {
    this.models = [];
    this.chosen = null;
    this.matches = [];
    this.active = -1;
    this.onChange = onChange;
    const list = `${name}-list`;
    this.input = element("input", {
      type: "text", id: name, role: "combobox", autocomplete: "off", spellcheck: "false", placeholder: "Type to search",
      "aria-expanded": "false", "aria-controls": list, "aria-autocomplete": "list",
    });
    this.list = element("ul", { id: list, role: "listbox", hidden: true, "aria-label": label });
    this.status = element("span", { class: "unseen", role: "status" });
    const box = element("div", { class: "picker" }, this.input, this.list);
    this.node = element("div", {}, element("label", { for: name }, label), box, this.status);
    this.input.addEventListener("input", () => this.open(this.input.value));
    this.input.addEventListener("focus", () => this.input.select());
    this.input.addEventListener("click", () => this.list.hidden && this.open(""));
    this.input.addEventListener("keydown", (event) => this.onKey(event));
    this.input.addEventListener("blur", () => this.settle());
    this.list.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
    this.list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.choose(this.matches[Number(option.dataset.place)]);
    });
  }

  setModels(models, preferred) {
    this.models = models;
    this.texts = models.map((model) => `${model.id} ${model.task || ""} ${model.method || ""}`.toLowerCase());
    const kept = this.chosen && models.find((model) => model.id === this.chosen.id);
    this.choose(kept || models[Math.min(preferred, models.length - 1)] || null);
  }

  choose(model) {
    this.chosen = model;
    this.input.value = model ? model.id : "";
    this.close();
    this.onChange(model);
  }

  open(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = [];
    this.texts.forEach((known, place) => words.every((word) => known.includes(word)) && fits.push(this.models[place]));
    const exact = text.trim();
    const rank = (model) => (model.id === exact ? 0 : model.id.toLowerCase().startsWith(words[0] || "") ? 1 : 2);
    if (words.length) fits.sort((one, other) => rank(one) - rank(other));
    this.matches = fits.slice(0, SHOWN);
    const options = this.matches.map((model, place) =>
      element(
        "li",
        {
          role: "option", id: `${this.list.id}-${place}`, "data-place": String(place),
          "aria-selected": String(Boolean(this.chosen && model.id === this.chosen.id)),
        },
        model.id,
        model.about ? element("small", {}, model.about) : null,
      ),
    );
    const left = fits.length - this.matches.length;
    if (left) options.push(element("li", { class: "more", role: "presentation" }, `and ${left.toLocaleString("en")} more: type to narrow`));
    if (!fits.length) options.push(element("li", { class: "more", role: "presentation" }, "no such adapter"));
    this.list.replaceChildren(...options);
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.status.textContent = `${fits.length.toLocaleString("en")} ${fits.length === 1 ? "adapter" : "adapters"}`;
    const current = words.length ? 0 : this.matches.findIndex((model) => this.chosen && model.id === this.chosen.id);
    this.activate(this.matches.length ? Math.max(0, current) : -1);
  }

  close() {
    this.list.hidden = true;
    this.active = -1;
    this.status.textContent = "";
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  activate(place) {
    const options = this.list.querySelectorAll("[role=option]");
    if (options[this.active]) options[this.active].classList.remove("active");
    this.active = place;
    const option = options[place];
    if (!option) return this.input.removeAttribute("aria-activedescendant");
    option.classList.add("active");
    option.scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", option.id);
  }

  onKey(event) {
    const last = this.matches.length - 1;
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: PAGE, PageUp: -PAGE };
    if (event.key in moves && !event.altKey) {
      event.preventDefault();
      if (this.list.hidden) this.open("");
      else if (last >= 0) this.activate(Math.min(last, Math.max(0, this.active + moves[event.key])));
    } else if (event.key === "Enter" && !this.list.hidden) {
      event.preventDefault();
      if (this.active >= 0) this.choose(this.matches[this.active]);
    } else if (event.key === "Escape" && !this.list.hidden) {
      event.stopPropagation();
      this.choose(this.chosen);
    }
  }

  // The field is left: a name in full is chosen, anything else is given up.
  settle() {
    const text = this.input.value.trim();
    this.choose(this.models.find((model) => model.id === text) || this.chosen);
  }
}
