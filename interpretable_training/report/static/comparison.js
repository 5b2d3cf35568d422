// comparison.js
// The page of two runs: where the maps differ, numbers side by side, and a film of each run.

(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const labels = ["before", "after"], top = document.getElementById("top");
  const named = (index) => (index === null || index === undefined ? "–" : className(index, page.classes));

  top.append(make("p", { class: "soft" }, "Comparison of two runs"), make("h1", {}, name(page.model)),
    make("dl", { class: "facts" }, labels.map((label, i) => make("div", {}, make("dt", {}, label), make("dd", { class: "path" }, name(page.names[i], 300))))));
  if (page.failed.length) top.append(make("div", { class: "card warning" }, make("strong", {}, "Limits exceeded. "), name(page.failed.join("; "), 4000)));
  if (page.missing.length) top.append(make("div", { class: "card warning" }, `Not compared: ${page.missing.join("; ")}.`));
  addMenu(top);

  function lastStrip(side, row) {
    const { events, tracks } = side.films.panel, track = tracks.findIndex(([method, view]) => method === row.method && view === row.view);
    const shown = events.filter((event) => ["fit", "explain"].includes(event.stage) && event.strips[track]);
    return shown.length ? shown[shown.length - 1].strips[track] : null;
  }

  function moved(row) {
    const cells = [mapCell((page.sides[0].images[row.id] || page.sides[1].images[row.id] || {}).src, null, row.id, page.overlay, name(row.label === null ? `image ${row.id}` : named(row.label)))];
    labels.forEach((label, i) => {
      const side = page.sides[i], strip = lastStrip(side, row), pred = row[`pred_${label}`], prob = row[`prob_${label}`];
      const wrong = row.label !== null && pred !== null && pred !== row.label;
      const figure = mapCell((side.images[row.id] || {}).src, strip, row.id, page.overlay, name(`${label}: ${named(pred)} ${prob === null ? "" : prob.toFixed(2)}`));
      if (wrong) figure.classList.add("wrong");
      cells.push(figure);
    });
    return make("div", { class: "card" }, make("p", { class: "message" }, make("b", {}, `${Math.round(100 * row.moved)} % moved`), ` · image ${row.id} · `, name(row.method)), make("div", { class: "maps three" }, cells));
  }

  if (page.images.length) section("moved", "Where evidence moved", "Where evidence moved", "The same images at the last explanation step of both runs, the largest change first: the share of the map's mass that lies elsewhere in the second run.", make("div", { class: "pairs" }, page.images.map(moved)));
  if (page.pairs.rows.length) section("pairs", "Same images", "Numbers of the same images", "Means over the images of both runs. The interval is that of the mean difference, by a paired bootstrap.", table(page.pairs.head, page.pairs.rows));
  if (page.metrics.rows.length) section("metrics", "Metrics", "Last metrics", "The last number of each run.", table(page.metrics.head, page.metrics.rows));
  if (page.by_class.length) section("classes", "Classes", "Classes", "Images of the panel by their true class.", table(["class", "images", "correct before", "correct after", "moved"], page.by_class.map(([label, ...others]) => [named(label), ...others])));
  if (page.confusions.length) section("confusions", "Confusions", "Confusions", "Images of the panel with a wrong prediction, the largest increase first.", table(["class", "predicted as", "before", "after"], page.confusions.map(([a, b, ...counts]) => [named(a), named(b), ...counts])));
  if (page.sides.every((side) => side.films.panel.events.length)) {
    const films = page.sides.map((side) => new Film(side.films.panel, { ...page, images: side.images }, () => {}, () => {}));
    section("panels", "Panels", "Panels over the training", "Each film has its own steps. Hover over an image to see the picture.", make("div", { class: "two" }, films.map((film, i) => make("div", {}, make("h3", {}, labels[i]), film.host))));
    films.forEach((film) => film.set({}));
  }
  for (const [id, short, title] of [["metrics", "Curves", "Metrics over the training"], ["training", "Training", "Training"], ["drift", "Drift", "Drift of the maps"]]) {
    const specs = page.charts[id];
    if (specs.length) section(`${id}-curves`, short, title, "", make("div", { class: "grid" }, specs.map((spec) => make("div", { class: "card" }, new Chart(spec, page.axis).host))));
  }
  if (!parts.childElementCount) parts.append(make("p", { class: "note" }, "The two runs have nothing in common that could be compared."));
  document.documentElement.dataset.ready = "yes";
})();
