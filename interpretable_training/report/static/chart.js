// chart.js
"use strict";
// Helpers that make elements. Texts of the run only become text nodes.

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "circle", "rect"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) element.append(child);
  return element;
}

function name(text, limit = 400) {
  const shown = String(text);
  return make("bdi", { title: shown.length > 24 ? shown.slice(0, limit) : null }, shown.slice(0, limit));
}

function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e5 || size < 1e-4) return value.toExponential(1);
  return String(Number(value.toPrecision(size >= 1000 ? 5 : 3)));
}

// Line charts. The line `now` of each chart follows the position of the film.

const charts = new Set();
const colors = new Map([["train", 0], ["val", 1], ["valid", 1], ["validation", 1], ["test", 2]]);
let counter = 0;

function colorOf(label) {
  if (!colors.has(label)) colors.set(label, counter++);
  return colors.get(label);
}

function stroke(label) {
  return `var(--c${colorOf(label) % 8})`;
}

function ticks(lo, hi, count, whole = false) {
  const rough = (hi - lo) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let i = Math.ceil(lo / step - 1e-9); i * step <= hi + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function bounds(values) {
  let lo = Infinity, hi = -Infinity;
  for (const value of values) if (value !== null) { lo = Math.min(lo, value); hi = Math.max(hi, value); }
  return [lo, hi];
}

class Chart {
  constructor(spec, axis, onpick = null) {
    this.spec = spec;
    this.axis = axis;
    this.onpick = onpick;
    this.now = null;
    const lines = spec.lines.map((line) => line.points.filter((point) => point[1] !== null));
    this.points = lines;
    this.xs = [...new Set(lines.flat().map((point) => point[0]))].sort((a, b) => a - b);
    this.host = make("div", { class: "chart" });
    this.host.append(this.head(), this.legend());
    this.svg = make("svg", { role: "img", "aria-label": `${spec.title} over ${axis}s` });
    this.tip = make("div", { class: "tip", hidden: true });
    this.host.append(this.svg, this.tip);
    this.svg.addEventListener("pointermove", (event) => this.hover(event));
    this.svg.addEventListener("pointerleave", () => this.leave());
    this.svg.addEventListener("click", (event) => this.onpick && this.onpick(this.nearest(event)));
    this.width = 0;
    new ResizeObserver(() => {
      const width = Math.round(this.host.clientWidth);
      if (width && width !== this.width) { this.width = width; requestAnimationFrame(() => this.draw()); }
    }).observe(this.host);
    charts.add(this);
  }

  head() {
    const { title, facts } = this.spec;
    const cue = facts && facts.region === "shortcut_mask"; // a high value is good for a metric of places, and bad for a model
    const way = facts && facts.direction && !cue ? String(facts.direction) : "";
    const arrow = way.startsWith("lower") ? "↓ " : way.startsWith("higher") ? "↑ " : "";
    const head = make("div", { class: "head" });
    if (!facts) {
      head.append(make("span", { class: "name" }, name(title)));
      return head;
    }
    const passport = make("div", { class: "passport", hidden: true }, pairs(Object.entries(facts)));
    const toggle = () => { passport.hidden = !passport.hidden; button.setAttribute("aria-expanded", String(!passport.hidden)); };
    const button = make("button", { class: "name", "aria-expanded": "false", title: "Show the exact definition", onclick: toggle }, name(title));
    head.append(button, make("span", { class: "way" }, arrow + way));
    return make("div", {}, head, passport);
  }

  legend() {
    const { undefined: left } = this.spec, note = left ? make("span", {}, `undefined for up to ${number(left)} images`) : null;
    const alone = this.spec.lines.length === 1 && this.spec.lines[0].label === this.spec.title;
    return make("div", { class: "legend" }, alone ? [] : this.spec.lines.map((line) => {
      const mark = make("i");
      mark.style.borderColor = stroke(line.label);
      if (colorOf(line.label) >= 8) mark.classList.add("dashed");
      return make("span", {}, mark, make("b", { title: line.label }, line.label.slice(0, 200)));
    }), note);
  }

  draw() {
    const height = 190, limits = (this.spec.thresholds || []).filter((value) => value !== null);
    let [lo, hi] = bounds([...this.points.flat().map((point) => point[1]), ...limits]);
    if (lo === Infinity) [lo, hi] = [0, 1];
    if (lo > 0 && lo < 0.5 * hi) lo = 0;
    if (hi === lo) { const by = Math.abs(hi) * 0.1 || 0.5; lo -= by; hi += by; }
    const room = (hi - lo) * 0.06;
    const yTicks = ticks(lo, hi, 4);
    lo = lo === 0 ? 0 : lo - room;
    hi += room;
    const left = Math.max(...yTicks.map((tick) => number(tick).length)) * 6.6 + 10, right = 8, top = 8, bottom = 32;
    let [first, last] = bounds(this.xs);
    if (first === last) { first -= 0.5; last += 0.5; }
    this.x = (value) => left + ((value - first) / (last - first)) * (this.width - left - right);
    this.y = (value) => top + ((hi - value) / (hi - lo)) * (height - top - bottom);
    this.svg.setAttribute("height", height);
    const parts = [];
    for (const tick of yTicks) {
      parts.push(make("line", { class: tick === 0 ? "zero" : "axis", x1: left, x2: this.width - right, y1: this.y(tick), y2: this.y(tick) }));
      parts.push(make("text", { x: left - 6, y: this.y(tick) + 4, "text-anchor": "end" }, number(tick)));
    }
    for (const tick of ticks(first, last, Math.min(8, this.width / 60), true)) {
      parts.push(make("text", { x: this.x(tick), y: height - bottom + 16, "text-anchor": "middle" }, number(tick)));
    }
    parts.push(make("text", { x: (left + this.width - right) / 2, y: height - 2, "text-anchor": "middle" }, this.axis));
    for (const limit of limits) {
      const y = this.y(limit);
      parts.push(make("line", { class: "limit", x1: left, x2: this.width - right, y1: y, y2: y }));
      parts.push(make("text", { class: "limit", x: left + 4, y: y - 5 }, `threshold ${number(limit)}`));
    }
    this.spec.lines.forEach((line, index) => parts.push(this.curve(line, index)));
    this.nowLine = make("line", { class: "now", y1: top, y2: height - bottom });
    this.cursor = make("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
    this.dots = make("g");
    this.svg.replaceChildren(...parts, this.nowLine, this.cursor, this.dots);
    this.follow(this.now);
  }

  curve(line, index) {
    let path = "", open = false;
    const group = make("g", { stroke: stroke(line.label), fill: stroke(line.label) });
    for (const [x, y] of line.points) {
      if (y === null) { open = false; continue; }
      path += `${open ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`;
      open = true;
    }
    const dash = colorOf(line.label) >= 8 ? "6 4" : null;
    group.append(make("path", { class: "curve", d: path, "stroke-dasharray": dash }));
    if (this.points[index].length <= 24) {
      for (const [x, y] of this.points[index]) group.append(make("circle", { cx: this.x(x), cy: this.y(y), r: 2.2, stroke: "none" }));
    }
    return group;
  }

  follow(x) {
    this.now = x;
    if (!this.nowLine) return;
    const inside = x !== null && this.xs.length > 1 && x >= this.xs[0] && x <= this.xs[this.xs.length - 1];
    this.nowLine.setAttribute("visibility", inside ? "visible" : "hidden");
    if (inside) { this.nowLine.setAttribute("x1", this.x(x)); this.nowLine.setAttribute("x2", this.x(x)); }
  }

  nearest(event) {
    const at = event.clientX - this.svg.getBoundingClientRect().left;
    return this.xs.reduce((best, x) => (Math.abs(this.x(x) - at) < Math.abs(this.x(best) - at) ? x : best), this.xs[0]);
  }

  hover(event) {
    if (!this.xs.length || !this.x) return;
    const x = this.nearest(event), at = this.x(x);
    this.cursor.setAttribute("x1", at);
    this.cursor.setAttribute("x2", at);
    this.cursor.setAttribute("visibility", "visible");
    const found = this.spec.lines.map((line, i) => [line.label, this.points[i].find((point) => point[0] === x)]).filter(([, point]) => point);
    this.dots.replaceChildren(...found.map(([label, point]) => make("circle", { cx: at, cy: this.y(point[1]), r: 4, fill: stroke(label) })));
    this.tip.replaceChildren(make("span", { class: "soft" }, `${this.axis} ${number(x)}`), ...found.map(([label, point]) => {
      const row = make("div", {}, make("b", {}, label.slice(0, 80)), make("span", {}, number(point[1])));
      row.style.color = stroke(label);
      return row;
    }));
    this.tip.hidden = false;
    const wide = this.tip.offsetWidth;
    this.tip.style.left = `${at + 14 + wide > this.width ? Math.max(0, at - wide - 14) : at + 14}px`;
    this.tip.style.top = `${this.svg.offsetTop + 8}px`;
  }

  leave() {
    this.tip.hidden = true;
    if (this.cursor) { this.cursor.setAttribute("visibility", "hidden"); this.dots.replaceChildren(); }
  }
}

function pairs(entries) {
  return make("dl", { class: "pairs" }, entries.map(([key, value]) => {
    const flat = Array.isArray(value) && value.every((item) => item === null || typeof item !== "object");
    const nested = value !== null && typeof value === "object" && !flat && Object.keys(value).length;
    const shown = nested ? pairs(Object.entries(value)) : name(flat ? value.join(", ") || "none" : nested === 0 || value === null ? "none" : value, 2000);
    return [make("dt", {}, name(key)), make("dd", {}, shown)];
  }).flat());
}
