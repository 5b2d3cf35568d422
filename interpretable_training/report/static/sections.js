// sections.js
// Sections and tables of a page, and the menu that leads to the sections.

const parts = document.getElementById("parts"), menu = make("div");

function section(id, short, title, note, ...content) {
  parts.append(make("section", { id }, make("h2", {}, title), make("p", { class: "note" }, note), ...content));
  menu.append(make("a", { href: `#${id}` }, short));
}

function table(head, rows) {
  const numeric = head.map((_, i) => rows.every((row) => typeof row[i] === "number" || row[i] === null || /^[\d.]+%$/.test(row[i])));
  const cell = (tag, value, i) => make(tag, { class: numeric[i] ? "number" : null }, typeof value === "number" || value === null || value === undefined ? number(value) : name(value, 1000));
  return make("div", { class: "card scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, head.map((value, i) => cell("th", value, i)))),
    make("tbody", {}, rows.map((row) => make("tr", {}, row.map((value, i) => cell("td", value, i)))))));
}

function addMenu(top) {
  top.after(make("nav", { "aria-label": "Sections" }, menu));
}

// Draws one image of a strip of maps; without a strip, the picture alone.
async function drawMap(canvas, picture, strip, id, style, scale = null) {
  const [levels, shown] = await Promise.all([strip ? recall(strip.src) : null, picture ? recall(picture) : null]);
  const row = strip ? strip.rows.id.indexOf(id) : -1;
  if (levels && row >= 0) {
    const ends = [strip.rows.lo[row], strip.rows.hi[row]];
    compose(canvas, shown, levels, row, strip, ends, scale || ends, style);
  } else if (shown) {
    Object.assign(canvas, { width: shown.width, height: shown.height });
    canvas.getContext("2d").putImageData(shown, 0, 0);
  }
}

function mapCell(picture, strip, id, style, caption) {
  const canvas = make("canvas");
  drawMap(canvas, picture, strip, id, style);
  return make("figure", {}, canvas, make("figcaption", {}, caption));
}
