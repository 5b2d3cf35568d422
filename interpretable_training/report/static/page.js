// page.js
// The page: sections in the order of importance; sections without data are left out.

(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const films = [];

  function draw(specs, cards = true) {
    return specs.map((spec) => {
      const chart = new Chart(spec, page.axis, (x) => films.forEach((film) => film.set({ event: film.nearest(x) })));
      return cards ? make("div", { class: "card" }, chart.host) : chart.host;
    });
  }

  const still = page.films.panel.events.some((event) => event.stage === "explain"); // pictures, not a training

  function header() {
    const top = document.getElementById("top"), day = (t) => new Date(1000 * t).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const when = page.times.length ? `${day(page.times[0])}${still ? "" : ` to ${day(page.times[1])}`} · run ${page.run}` : "";
    top.append(make("p", { class: "soft" }, still ? "Explanations of pictures" : "Explanations during training"), make("h1", {}, name(page.model)), make("p", { class: "soft" }, when));
    if (page.facts.length) {
      top.append(make("dl", { class: "facts" }, page.facts.map(([key, value]) =>
        make("div", { class: ["alarms", "failures"].includes(key) ? "bad" : null }, make("dt", {}, name(key)), make("dd", {}, name(value))))));
    }
    if (page.classes && page.classes.length) {
      const shown = page.classes.slice(0, 24), rest = page.classes.length - shown.length;
      top.append(make("ul", { class: "chips" }, make("li", { class: "plain" }, `${page.classes.length} classes`),
        shown.map((c) => make("li", { title: String(c).slice(0, 400) }, name(c))), rest ? make("li", {}, `and ${rest} more`) : null));
    }
    if (page.missing.length) top.append(make("div", { class: "card warning" }, `Not on this page: ${page.missing.join("; ")}.`));
    addMenu(top);
  }

  function glance() { // alarms, and how the maps changed
    const cards = page.alarms.map((alarm) => {
      const said = alarm.raised.map(({ message, count, first }) => {
        const times = count === 1 ? "Raised once" : `Raised ${count} times`, since = first === null ? "" : `, first at ${page.axis} ${number(first)}`;
        return make("p", { class: "message" }, make("strong", {}, `${times}${since}. `), name(message, 1000));
      });
      return make("div", { class: "card alarm" }, said, draw([alarm.chart], false));
    });
    const shown = new Set(page.alarms.map((alarm) => alarm.chart.title)), where = page.metrics.filter((spec) => spec.where !== null && !shown.has(spec.title));
    const both = beforeAndAfter(cards.length + where.length > 1 ? 4 : 5);
    cards.push(...draw(where.slice(0, Math.max(1, (both ? 2 : 3) - cards.length))));
    if (!cards.length && !both) return;
    const what = page.alarms.length ? "Metrics that crossed a threshold, and how the maps changed during training." : "How the maps changed during training.";
    const note = `${what} The dotted vertical line in a chart marks the explanation step that is shown below.`;
    section("glance", "At a glance", "At a glance", note, make("div", { class: "three" }, both, cards));
  }

  function beforeAndAfter(count) {
    const { events, tracks } = page.films.panel, fitted = events.filter((event) => event.stage === "fit");
    const key = 0, [method] = tracks[key] || [], first = fitted[0], last = fitted[fitted.length - 1];
    if (fitted.length < 2 || !first.strips[key] || !last.strips[key]) return null;
    const ids = last.strips[key].rows.id.filter((id) => first.strips[key].rows.id.includes(id)).slice(0, count);
    const rows = [["picture", null], [stepName(first).split(" · ")[0], first.strips[key]], [stepName(last).split(" · ")[0], last.strips[key]]];
    const table = make("div", { class: "before" });
    table.style.setProperty("--count", ids.length);
    for (const [label, strip] of rows) {
      table.append(make("span", {}, label));
      for (const id of ids) {
        const canvas = make("canvas");
        table.append(canvas);
        drawMap(canvas, page.images[id] && page.images[id].src, strip, id, page.overlay);
      }
    }
    return make("div", { class: "card" }, make("p", { class: "message" }, "First and last explanation step, ", name(method)), table);
  }

  function thinned(film) {
    const omitted = film.events.length < film.total ? `${film.events.length} of ${film.total} explanation steps are shown, evenly spread and with the first and the last, to limit the size of the page. ` : "";
    return omitted + (film.lost ? `${film.lost} files of maps are missing or damaged. ` : "");
  }

  function film(id, short, title, note) {
    const data = page.films[id];
    if (!data.events.length) {
      if (data.total || data.lost) section(id, short, title, `None of the ${data.total} explanation steps fits on this page. ${thinned(data)}`);
      return;
    }
    const made = new Film(data, page, (source, event) => moved(source, event), detail);
    films.push(made);
    section(id, short, title, thinned(data) + note, made.host);
    return made;
  }

  function moved(source, event) {
    if (source !== films[0]) return;
    const x = event.stage === "fit" ? event.x : null;
    charts.forEach((chart) => chart.follow(x));
    if (dialog.open) fillDetail();
    if (!settled) return;
    const { event: index, method, view, scale } = source.state;
    try { history.replaceState(null, "", "#" + new URLSearchParams({ event: index, method, view, scale })); } catch { /* in a frame without rights */ }
  }

  // One image: its picture, the map of each method, and their curves over the training.

  const dialog = document.getElementById("detail");
  let open = null, turn = 0;

  function detail(source, id) {
    open = { source, id };
    fillDetail();
    if (!dialog.open) dialog.showModal();
  }

  function over(film, value) { // curves over the training for one image: label -> points
    const lines = new Map();
    for (const event of film.data.events) {
      if (event.stage !== "fit" || event.x === null) continue;
      for (const [track, strip] of Object.entries(event.strips)) {
        const row = strip.rows.id.indexOf(open.id), [method, view] = film.data.tracks[track];
        if (row < 0 || view !== film.state.view) continue;
        const y = value(strip.rows, row);
        if (y === null || y === undefined) continue;
        if (!lines.has(method)) lines.set(method, []);
        lines.get(method).push([event.x, y]);
      }
    }
    return [...lines].map(([label, points]) => ({ label, points }));
  }

  async function fillDetail() {
    const mine = ++turn, { source, id } = open, event = source.data.events[source.state.event], { view } = source.state;
    const known = page.images[id] || {}, label = known.label === null || known.label === undefined ? "" : ` · ${className(known.label, page.classes)}`;
    const close = make("button", { class: "close", type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "×");
    const maps = make("div", { class: "maps" });
    if (known.src) maps.append(make("figure", {}, make("img", { src: known.src, alt: "" }), make("figcaption", {}, "picture")));
    for (const method of source.methods) {
      const track = source.track(method, view), strip = event.strips[track], row = strip ? strip.rows.id.indexOf(id) : -1;
      if (row < 0) continue;
      const canvas = make("canvas"), [levels, picture] = await Promise.all([recall(strip.src), source.picture(id)]);
      if (!levels) continue;
      compose(canvas, picture, levels, row, strip, [strip.rows.lo[row], strip.rows.hi[row]], source.scale(strip, row, track), page.overlay);
      maps.append(make("figure", {}, canvas, make("figcaption", {}, name(`${method}: ${captions(strip.rows, row, page.classes).says}`))));
    }
    const specs = [];
    const prob = over(source, (rows, row) => (rows.prob || rows.prob_pred || [])[row]).slice(0, 1).map((line) => ({ ...line, label: "probability" }));
    if (prob.length && prob[0].points.length > 1) specs.push({ title: "probability of the explained class", lines: prob });
    for (const key of ["mass", "entropy"]) {
      const lines = over(source, (rows, row) => (rows[key] || [])[row]);
      if (lines.some((line) => line.points.length > 1)) specs.push({ title: `${key} of the map`, lines });
    }
    const drifts = new Map();
    for (const [method, images] of Object.entries(page.drift.images)) {
      for (const [title, points] of Object.entries(images[id] || {})) {
        if (!drifts.has(title)) drifts.set(title, { title, lines: [] });
        drifts.get(title).lines.push({ label: method, points });
      }
    }
    if (mine !== turn) return; // another image or step is shown by now
    charts.forEach((chart) => { if (dialog.contains(chart.host)) charts.delete(chart); });
    const drawn = draw([...drifts.values(), ...specs], false);
    charts.forEach((chart) => chart.follow(event.stage === "fit" ? event.x : null));
    dialog.replaceChildren(
      make("div", { class: "head" }, make("div", {}, make("h2", {}, name(`Image ${id}${label}`)), make("p", { class: "soft" }, stepName(event))), close),
      maps, make("div", { class: "grid" }, drawn));
  }

  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  function shortcuts() { // clusters of images by what the network looks at
    if (!page.shortcuts.length) return;
    const content = page.shortcuts.flatMap((part) => [
      make("div", { class: part.claimed ? "card alarm" : "card" }, make("p", { class: "message" }, make("strong", {}, name(part.method), ": "), name(part.message, 1000))),
      part.rows.length ? table(part.head, part.rows) : null,
      ...part.sheets.filter((sheet) => sheet.src).map((sheet) => make("figure", { class: "card scroll sheet" },
        make("figcaption", {}, make("strong", {}, sheet.claimed ? `Shortcut, cluster ${sheet.cluster}` : `Cluster ${sheet.cluster}`), " · ",
          name(sheet.shares.map(([label, share]) => `${label} ${number(100 * share)} %`).join(", "), 1000)),
        make("img", { src: sheet.src, alt: "" }))),
    ]);
    section("shortcuts", "Shortcuts", "Shortcuts", "Images in clusters by the content that the network looks at. A cluster is called a shortcut if one small piece of content tells the class of its images, and the network relies on it.", make("div", { class: "stack" }, content));
  }

  function classes() { // per class, and the images of each pair of classes that the model confuses
    const named = (index) => className(index, page.classes), last = {};
    for (const [group, data] of Object.entries(page.films)) last[group] = data.events.filter((event) => event.stage === "fit").pop();
    const cards = page.confusions.map(({ label, pred, images }) => {
      const cells = images.slice(0, 6).map(([id, group]) => {
        const strips = last[group] ? Object.values(last[group].strips) : [], strip = strips.find((each) => each.rows.id.includes(id));
        return strip ? mapCell((page.images[id] || {}).src, strip, id, page.overlay, name(`image ${id}`)) : null;
      });
      const count = images.length === 1 ? "1 image" : `${images.length} images`;
      return make("div", { class: "card" }, make("p", { class: "message" }, name(named(label)), " predicted as ", name(named(pred)), `: ${count}`), make("div", { class: "maps small" }, cells));
    });
    if (!page.by_class.rows && !cards.length) return;
    const rows = (page.by_class.rows || []).map(([label, ...others]) => [named(label), ...others]);
    section("classes", "Classes", "Classes and confusions", "Images of the panel by their true class at the last explanation step, and the images of the panel and the hardest images whose prediction is wrong.",
      make("div", { class: "stack" }, rows.length ? table(page.by_class.head, rows) : null, cards.length ? make("div", { class: "pairs" }, cards) : null));
  }

  function rest() {
    shortcuts();
    classes();
    if (page.metrics.length) {
      section("metrics", "Metrics", "Metrics of the explanations", "One line per method. Click an underlined name for its exact definition; click a curve to show the maps of that step.", make("div", { class: "grid" }, draw(page.metrics)));
    }
    if (page.training.length) section("training", "Training", "Training", "Values that the project logged.", make("div", { class: "grid" }, draw(page.training)));
    if (page.final.length) {
      section("final", "Evaluation", "Separate validation and test", "Measured outside the training, with the weights that were loaded at that time.", ...page.final.map((part) =>
        make("div", {}, make("h3", {}, name(part.title)), table(part.head, part.rows))));
    }
    film("hardest", "Hardest images", "Hardest images", "The images with the highest loss of each epoch.");
    film("test-panel", "Test images", "Test images", "Maps of test images, with the tested weights.");
    film("test-hardest", "Hardest test images", "Hardest test images", "The test images with the highest loss.");
    if (page.drift.charts.length) section("drift", "Drift", "Drift of the maps", "How much the maps of the panel change: mean over its images. Click an image of the panel for its own curves.", make("div", { class: "grid" }, draw(page.drift.charts)));
    if (page.randomization.length) section("randomization", "Randomization", "Randomization test", "A map that stays the same when random weights replace the trained ones does not show what the model has learned.", table(["method", "similarity", "verdict", "rule"], page.randomization));
    if (page.failures.length) section("failures", "Failures", "Failures", "Explanation steps that failed. Training continued.", table(["callback", "reason", "count", "first epoch"], page.failures));
    if (page.dropped.length) section("dropped", "Skipped", "Skipped to stay within the budget", "", table(["callback", "skipped", "count", "first epoch"], page.dropped));
    if (page.cost.rows) section("cost", "Cost", "Cost of watching", "", make("div", { class: "two" }, table(page.cost.head, page.cost.rows), ...draw(page.cost.charts)));
    const settings = Object.entries(page.settings);
    if (page.probe.length) section("probe", "Start-up report", "Start-up report", "", make("div", { class: "card scroll" }, pairs(page.probe)));
    if (settings.length) section("settings", "Settings", "Settings", "", make("div", { class: "two" }, settings.map(([key, value]) => make("div", { class: "card" }, make("h3", {}, name(key)), pairs(value !== null && typeof value === "object" ? Object.entries(value) : [["", value]])))));
  }

  function fromHash() {
    const asked = new URLSearchParams(location.hash.slice(1)), change = {};
    if (asked.has("event")) change.event = Number(asked.get("event"));
    for (const key of ["method", "view", "scale"]) if (asked.has(key)) change[key] = asked.get(key);
    return change;
  }

  document.addEventListener("keydown", (event) => {
    if (!films.length || event.altKey || event.ctrlKey || event.metaKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    films[0].stop();
    films[0].set({ event: films[0].state.event + by });
  });
  window.addEventListener("hashchange", () => { if (films.length && location.hash.includes("event=")) films[0].set(fromHash()); });

  let settled = false;
  header();
  glance();
  const bright = "Bright regions have high values in the map.", hover = "Hover over an image to see the picture.";
  const note = still ? `${bright} The caption is the prediction. ${hover}` : `The same images at each explanation step. ${bright} The caption is the prediction, in red if it is wrong. Arrow keys move in time. ${hover}`;
  film("panel", "Maps", "Saliency maps of the panel", note);
  rest();
  if (menu.childElementCount < 2) menu.parentElement.hidden = true;
  Promise.all(films.map((made, i) => made.set(i ? {} : fromHash()))).then(() => {
    settled = true;
    const image = new URLSearchParams(location.hash.slice(1)).get("image");
    if (image !== null && films.length) detail(films[0], image);
    document.documentElement.dataset.ready = "yes";
  });
})();
