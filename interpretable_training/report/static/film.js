// film.js
// The film: maps over their images, by the formula of interpretable_training/visual/overlay.py.

function decode(src) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => {
      const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      resolve(context.getImageData(0, 0, canvas.width, canvas.height));
    };
    image.onerror = () => resolve(null);
    image.src = src;
  });
}

const decoded = new Map();
function recall(src, limit = 160) {
  if (!decoded.has(src)) decoded.set(src, decode(src));
  if (decoded.size > limit) decoded.delete(decoded.keys().next().value);
  return decoded.get(src);
}

const rulers = new Map();
function ruler(from, to) { // positions for linear interpolation; pixels are areas
  const key = `${from} ${to}`;
  if (!rulers.has(key)) {
    const places = [];
    for (let i = 0; i < to; i++) {
      const at = Math.max(0, ((i + 0.5) * from) / to - 0.5), low = Math.min(from - 1, Math.floor(at));
      places.push([low, Math.min(from - 1, low + 1), at - low]);
    }
    rulers.set(key, places);
  }
  return rulers.get(key);
}

// Draws one image: `strip` holds levels of maps (h x w each), of which `row` lies between lo and hi; `scale` is [dark, bright].
function compose(canvas, picture, strip, row, size, ends, scale, style) {
  const width = picture ? picture.width : Math.max(96, size.w), height = picture ? picture.height : Math.max(96, size.h);
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const context = canvas.getContext("2d"), out = context.createImageData(width, height), { strength, floor, colors } = style;
  const xs = ruler(size.w, width), ys = ruler(size.h, height), offset = row * size.h * size.w;
  const extent = scale[1] - scale[0];
  const level = (y, x) => strip.data[4 * (offset + y * size.w + x)];
  for (let y = 0, at = 0; y < height; y++) {
    const [top, below, down] = ys[y];
    for (let x = 0; x < width; x++, at += 4) {
      const [near, far, along] = xs[x];
      const q = (1 - down) * ((1 - along) * level(top, near) + along * level(top, far)) + down * ((1 - along) * level(below, near) + along * level(below, far));
      const value = ends[0] + (q / 255) * (ends[1] - ends[0]);
      const S = extent > 0 ? Math.min(1, Math.max(0, (value - scale[0]) / extent)) : 0;
      const color = 3 * Math.min(255, Math.floor(S * 256)), weight = strength * (floor + (1 - floor) * S);
      const gray = picture ? (picture.data[at] + picture.data[at + 1] + picture.data[at + 2]) / 3 : 127;
      for (let c = 0; c < 3; c++) out.data[at + c] = Math.round((1 - weight) * gray + weight * colors[color + c]);
      out.data[at + 3] = 255;
    }
  }
  context.putImageData(out, 0, 0);
}

function picker(label, options, current, onpick) {
  if (options.length < 2) return make("span", { hidden: true });
  const buttons = options.map(([value, shown]) => make("button", {
    type: "button", "aria-pressed": String(value === current), title: String(shown).slice(0, 300),
    onclick: () => { onpick(value); },
  }, name(shown)));
  const set = make("span", { class: "pick" }, label, make("span", { class: "set", role: "group", "aria-label": label }, buttons));
  set.show = (value) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(options[i][0] === value)));
  return set;
}

class Film {
  constructor(data, page, onevent, ondetail) {
    this.data = data; // events, tracks, scales
    this.page = page; // data of the whole page
    this.onevent = onevent;
    this.ondetail = ondetail;
    this.state = { event: data.events.length - 1, method: data.tracks[0][0], view: data.tracks[0][1], scale: "image" };
    this.shots = [];
    this.timer = null;
    this.turn = 0;
    this.host = make("div", { class: "card" }, this.controls(), (this.grid = make("div", { class: "film" })));
  }

  get methods() { return [...new Set(this.data.tracks.map((track) => track[0]))]; }

  track(method = this.state.method, view = this.state.view) {
    return this.data.tracks.findIndex((track) => track[0] === method && track[1] === view);
  }

  get views() { return [...new Set(this.data.tracks.filter((track) => track[0] === this.state.method).map((track) => track[1]))]; }

  controls() {
    const last = this.data.events.length - 1;
    this.slider = make("input", { type: "range", min: 0, max: last, value: last, step: 1, "aria-label": "Explanation step", oninput: () => { this.stop(); this.set({ event: Number(this.slider.value) }); } });
    this.label = make("output");
    this.button = make("button", { class: "play", type: "button", onclick: () => (this.timer ? this.stop() : this.play()) });
    this.face();
    this.mark = make("i", { class: "mark", hidden: true });
    this.time = make("div", { class: "time" }, last > 0 ? this.button : null, last > 0 ? make("span", { class: "slide" }, this.slider, this.mark) : null, this.label);
    this.pickers = make("div", { class: "controls" });
    return make("div", {}, make("div", { class: "controls" }, this.time), this.pickers);
  }

  face() {
    const shape = this.timer ? "M1 0h4v14H1zM9 0h4v14H9z" : "M2 0l12 7-12 7z";
    this.button.replaceChildren(make("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }, make("path", { d: shape })));
    this.button.setAttribute("aria-label", this.timer ? "Pause" : "Play");
  }

  play() {
    if (this.state.event >= this.data.events.length - 1) this.set({ event: 0 });
    this.timer = setInterval(() => {
      if (this.state.event >= this.data.events.length - 1) this.stop();
      else this.set({ event: this.state.event + 1 });
    }, Math.max(60, Math.min(600, 12000 / this.data.events.length)));
    this.face();
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.face();
  }

  set(change) {
    Object.assign(this.state, change);
    this.state.event = Math.max(0, Math.min(this.data.events.length - 1, Math.trunc(this.state.event) || 0));
    if (!this.methods.includes(this.state.method)) this.state.method = this.methods[0];
    if (!this.views.includes(this.state.view)) this.state.view = this.views[0];
    return this.render();
  }

  nearest(x) {
    const far = (event) => (event.x === null || event.stage !== "fit" ? Infinity : Math.abs(event.x - x));
    const events = this.data.events;
    return events.reduce((best, event, i) => (far(event) < far(events[best]) ? i : best), 0);
  }

  showMark() { // where the maps of this track become stable
    const x = this.data.stable[this.track()];
    this.mark.hidden = x === undefined;
    if (x === undefined) return;
    const at = this.nearest(x) / Math.max(1, this.data.events.length - 1);
    this.mark.style.left = `calc(${at} * (100% - 16px) + 8px)`; // the middle of the slider's knob
    this.mark.title = `From ${this.page.axis} ${number(x)} on, less than a tenth of the maps' mass moves between steps`;
  }

  showPickers() {
    const { method, view, scale } = this.state;
    const views = new Map([["pred", "predicted"], ["label", "labeled"], ["top1", "first"], ["top2", "second"], ["top3", "third"]]);
    this.pickers.replaceChildren(
      picker("Method", this.methods.map((m) => [m, m]), method, (m) => this.set({ method: m })),
      picker("Explained class", this.views.map((v) => [v, views.get(v) || v]), view, (v) => this.set({ view: v })),
      picker("Scale", [["image", "each image"], ["run", "whole run"]], scale, (s) => this.set({ scale: s })),
      this.bar(),
    );
  }

  bar() {
    const canvas = make("canvas", { width: 256, height: 1 }), context = canvas.getContext("2d"), data = context.createImageData(256, 1);
    for (let i = 0; i < 256; i++) for (let c = 0; c < 4; c++) data.data[4 * i + c] = c < 3 ? this.page.overlay.colors[3 * i + c] : 255;
    context.putImageData(data, 0, 0);
    const ends = this.state.scale === "run" ? (this.data.scales[this.track()] || ["low", "high"]) : ["low", "high"];
    return make("span", { class: "bar" }, number(ends[0]), canvas, number(ends[1]));
  }

  async render() {
    const turn = ++this.turn, event = this.data.events[this.state.event];
    const track = this.track(), strip = event.strips[track];
    this.slider.value = this.state.event;
    this.label.value = stepName(event) + (strip && strip.weights !== "raw" ? ` · ${strip.weights} weights` : "");
    this.slider.setAttribute("aria-valuetext", this.label.value);
    this.showPickers();
    this.showMark();
    this.onevent(this, event);
    const levels = strip ? await recall(strip.src) : null;
    const pictures = strip ? await Promise.all(strip.rows.id.map((id) => this.picture(id))) : [];
    if (turn !== this.turn) return; // another step is shown by now
    if (!strip || !levels) {
      this.grid.replaceChildren(make("p", { class: "note" }, "This explanation step has no maps of this method."));
      this.shots = [];
      return;
    }
    if (this.shots.length !== strip.rows.id.length) {
      this.shots = strip.rows.id.map(() => new Shot(this));
      this.grid.replaceChildren(...this.shots.map((shot) => shot.host));
    }
    this.shots.forEach((shot, row) => shot.show(strip, row, levels, pictures[row], this.scale(strip, row)));
    const next = this.data.events[this.state.event + 1];
    const ahead = next && next.strips[track];
    if (ahead) recall(ahead.src);
    this.host.dataset.shown = `${this.state.event} ${this.state.method}`;
  }

  picture(id) {
    const known = this.page.images[id];
    return known && known.src ? recall(known.src) : Promise.resolve(null);
  }

  scale(strip, row, track = this.track()) {
    const whole = this.data.scales[track];
    return this.state.scale === "run" && whole ? whole : [strip.rows.lo[row], strip.rows.hi[row]];
  }
}

function stepName(event) {
  if (event.stage === "explain") return "";
  const parts = [event.stage === "fit" ? null : event.stage, event.epoch === null ? null : `epoch ${event.epoch}`, event.step === null ? null : `step ${event.step}`];
  return parts.filter((part) => part !== null).join(" · ") || "one step";
}

class Shot {
  constructor(film) {
    this.film = film;
    this.canvas = make("canvas");
    this.says = make("div", { class: "says" });
    this.truth = make("div", { class: "truth" });
    this.host = make("button", { class: "shot", type: "button", onclick: () => film.ondetail(film, this.id) }, this.canvas, this.says, this.truth);
    this.host.addEventListener("pointerenter", () => this.plain());
    this.host.addEventListener("pointerleave", () => this.again && this.again());
  }

  show(strip, row, levels, picture, scale) {
    const { rows } = strip;
    this.id = rows.id[row];
    this.picture = picture;
    this.again = () => compose(this.canvas, picture, levels, row, strip, [rows.lo[row], rows.hi[row]], scale, this.film.page.overlay);
    this.again();
    const caption = captions(rows, row, this.film.page.classes);
    this.host.title = `image ${this.id}`.slice(0, 200) + ": hover to see the picture, click for details";
    this.host.classList.toggle("wrong", caption.wrong);
    this.says.replaceChildren(name(caption.says), make("span", {}, caption.prob));
    const pictures = this.film.data.events[0].stage === "explain", line = pictures ? String(this.id) : caption.truth; // the name of a file
    this.truth.replaceChildren(name(line));
    this.truth.title = line.length > 20 ? line.slice(0, 300) : "";
  }

  plain() {
    if (!this.picture) return;
    this.canvas.getContext("2d").putImageData(this.picture, 0, 0);
  }
}

function className(index, classes) {
  return classes && index in classes ? classes[index] : `class ${index}`;
}

function captions(rows, row, classes) {
  const get = (key) => (rows[key] ? rows[key][row] : null);
  const pred = get("pred"), label = get("label"), target = get("target"), prob = get("prob_pred"), loss = get("loss");
  const wrong = label !== null && pred !== null && label !== pred;
  const truth = [];
  if (wrong) truth.push(`is ${className(label, classes)}`);
  if (target !== null && target !== pred) truth.push(`explained: ${className(target, classes)} ${number(get("prob"))}`);
  if (loss !== null) truth.push(`loss ${number(loss)}`);
  if (get("degenerate")) truth.push("empty map");
  return {
    wrong, prob: prob === null ? "" : prob.toFixed(2), truth: truth.join(" · ") || "\u00a0",
    says: pred === null ? `image ${rows.id[row]}` : className(pred, classes),
  };
}
