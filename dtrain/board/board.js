// The page of dtrain board: it asks for what is new every two seconds while it is looked at, and shows it. Texts are never taken for HTML.
"use strict";
const EVERY = 2000, SOON = 500, SHOWN = 300;
const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const one = Object.assign(document.createElement(tag), properties);
  one.append(...children);
  return one;
};
const fill = (id, ...children) => $(id).replaceChildren(...children);
const number = (value, digits = 5) => typeof value === "number" ? Number(value.toPrecision(digits)).toString() : value ?? "-";
const plain = (value) => value === null || value === undefined ? "-" : value.toLocaleString("en");
const short = (value) => {
  const size = Math.abs(value), [limit, unit] = [[1e9, "G"], [1e6, "M"], [1e4, "k"]].find(([limit]) => size >= limit) ?? [1, ""];
  return value && size < 1e-3 ? value.toExponential(0) : number(value / (unit === "k" ? 1e3 : limit), 4) + unit;
};
const ago = (time) => {
  if (!time) return "-";
  const seconds = Math.max(0, Math.round(Date.now() / 1000 - time));
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]].find(([size]) => seconds >= size) ?? [1, "s"];
  return `${Math.floor(seconds / size)}${unit} ago`;
};
const kind = (state) => ({done: "good", running: "good", failed: "bad", lost: "bad", "gave up": "bad", reading: "soft"})[state] ?? "warn";
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---- asking

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", "#/");
}

async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method: body ? "POST" : "GET", body: body && JSON.stringify(body),
      headers: {Authorization: `Bearer ${sessionStorage.getItem("token") ?? ""}`},
    });
  } catch {
    throw new Error("The board does not answer: dtrain board has ended, or the connection is gone.");
  }
  const data = await answer.json();
  if (!answer.ok) throw new Error(data.error);
  return data;
}

const query = (ids) => ids.map((id) => `id=${encodeURIComponent(id)}`).join("&");

function problem(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text;
}

// ---- the list

let reading = false;  // whether there is more to come at once
const known = {version: 0, ids: [], rows: new Map()};
const shown = new Map();  // id -> its row of the table
const ticked = new Set();
let sorted = "started", metric = "", most = SHOWN;
const HEADS = [["", ""], ["run", "run"], ["state", "state"], ["step", "step"], ["metric", "metric"], ["started", "started"],
  ["strategy", "how"], ["", "tags and notes"], ["", "reason"]];

function valueOf(row) {
  const value = row.metrics[metric];
  return typeof value === "number" ? value : null;
}

const lower = (name) => ["loss", "error", "perplexity", "mse", "mae", "wer", "divergence"].some((word) => name.toLowerCase().includes(word));

function order(ids) {
  if (sorted === "started") return ids;
  const rows = known.rows, sign = lower(metric) ? 1 : -1;
  const by = {
    run: (one) => one, state: (one) => rows.get(one).state, strategy: (one) => rows.get(one).strategy,
    step: (one) => -rows.get(one).step,
    metric: (one) => { const value = valueOf(rows.get(one)); return value === null ? Infinity : sign * value; },
  }[sorted];
  return [...ids].sort((one, other) => by(one) < by(other) ? -1 : by(one) > by(other) ? 1 : 0);
}

function fits(row) {
  const tags = Object.entries(row.tags).map(([key, value]) => `${key}=${value}`).join(" ");
  const text = `${row.run} ${row.state} ${row.strategy} ${row.cluster} ${tags} ${row.note}`.toLowerCase();
  return $("filter").value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

function rowOf(row) {
  const box = make("input", {type: "checkbox", checked: ticked.has(row.run), ariaLabel: `compare ${row.run}`});
  box.onchange = () => { box.checked ? ticked.add(row.run) : ticked.delete(row.run); tools(); };
  const tags = Object.entries(row.tags).map(([key, value]) => `${key}=${value}`);
  const steps = make("td", {className: "num"}, row.total_steps ? `${plain(row.step)} of ${plain(row.total_steps)}` : row.step ? plain(row.step) : "-");
  if (row.total_steps) steps.append(make("progress", {max: row.total_steps, value: row.step, ariaLabel: "steps"}));
  return make("tr", {},
    make("td", {}, box), make("td", {}, make("a", {href: `#/run/${encodeURIComponent(row.run)}`, textContent: row.run})),
    make("td", {className: kind(row.state)}, row.state), steps,
    make("td", {className: "num"}, number(row.metrics[metric])), make("td", {}, ago(row.started)),
    make("td", {}, row.workers ? `${row.strategy} on ${row.workers}, ${row.cluster}` : "-"),
    make("td", {className: "text"}, [...tags, row.note].filter(Boolean).join(", ")),
    make("td", {className: "text soft"}, row.reason));
}

function tools() {
  $("compare").disabled = !ticked.size;
  $("compare").textContent = ticked.size ? `compare ${ticked.size}` : "compare: tick runs";
}

function chooseMetric() {
  const names = [...new Set([...known.rows.values()].flatMap((row) => Object.keys(row.metrics)))]
    .sort((one, other) => other.startsWith("held-out ") - one.startsWith("held-out ") || one.localeCompare(other));
  if (!names.includes(metric)) metric = names[0] ?? "";
  if (names.join("\n") === [...$("metric").options].map((one) => one.value).join("\n")) return;
  fill("metric", ...names.map((name) => make("option", {value: name, textContent: name, selected: name === metric})));
  shown.clear();
}

async function list() {
  const found = await ask(`api/runs?since=${known.version}`);
  for (const row of found.rows) {
    known.rows.set(row.run, row);
    shown.delete(row.run);
  }
  Object.assign(known, {version: found.version, ids: found.ids});
  for (const id of known.rows.keys()) if (!found.ids.includes(id) && known.rows.size > found.ids.length) known.rows.delete(id);
  $("folder").textContent = `${found.folder}${found.control ? "" : ", read only"}`;
  studies(found);
  reading = [...known.rows.values()].some((row) => row.state === "reading");
  chooseMetric();
  draw();
}

function studies({studies, control}) {
  const key = JSON.stringify([studies, control]);
  if ($("studies").dataset.key === key) return;
  $("studies").dataset.key = key;
  fill("studies", ...(studies.length ? ["studies: "] : []), ...studies.flatMap(({study, state}) => {
    const link = make("a", {href: "#/", textContent: study, title: "show its trials"});
    link.onclick = (event) => { event.preventDefault(); $("filter").value = study; draw(); };
    return [link, ` ${state} `, ...(control && state !== "done" ? [commanding(state === "running" ? "stop" : "resume", study)] : []), " "];
  }));
}

// A button that has a run or a study stopped or resumed, and says what came of it.
function commanding(name, id) {
  const button = make("button", {textContent: name === "stop" ? "stop: save and end" : name}), said = make("span", {className: "soft"});
  button.onclick = async () => {
    button.disabled = true;
    said.textContent = " …";
    try {
      const {text} = await ask(`api/${name}`, {id});
      said.textContent = ` ${name === "resume" ? "it goes on" : text}`;
    } catch (error) {
      said.textContent = ` ${error.message}`;
      button.disabled = false;
    }
  };
  return make("span", {}, button, said);
}

function draw() {
  const fitting = order(known.ids.filter((id) => known.rows.has(id) && fits(known.rows.get(id))));
  const rows = fitting.slice(0, most).map((id) => {
    if (!shown.has(id)) shown.set(id, rowOf(known.rows.get(id)));
    const started = shown.get(id).children[5], text = ago(known.rows.get(id).started);
    if (started.textContent !== text) started.textContent = text;
    return shown.get(id);
  });
  const body = $("rows");
  if (rows.length !== body.children.length || rows.some((row, index) => row !== body.children[index])) body.replaceChildren(...rows);
  fill("heads", ...HEADS.map(([key, text]) => {
    const head = make("th", {textContent: key === "metric" ? metric || "metric" : text, className: `${key === sorted ? "on" : ""}${["step", "metric"].includes(key) ? " num" : ""}`});
    if (key) {
      head.dataset.sort = key;
      head.onclick = () => { sorted = key; draw(); };
    }
    return head;
  }));
  $("more").hidden = fitting.length <= most;
  $("count").textContent = `${plain(fitting.length)} of ${plain(known.ids.length)} runs` + (fitting.length > most ? `, the first ${most} shown` : "");
  tools();
}

$("filter").oninput = draw;
$("metric").onchange = () => { metric = $("metric").value; shown.clear(); draw(); };
$("compare").onclick = () => { location.hash = `#/compare/${[...ticked].map(encodeURIComponent).join("/")}`; };
$("more").onclick = () => { most = Infinity; draw(); };

// ---- charts

const charts = new Map();  // id of its place -> {plot, node}

function forget() {
  for (const {plot, watch} of charts.values()) { watch.disconnect(); plot.destroy(); }
  charts.clear();
  fill("charts");
  fill("charts-beside");
}

function restartsDrawn(at) {
  return {hooks: {draw: (plot) => {
    const {ctx, bbox} = plot;
    ctx.save();
    ctx.strokeStyle = color("--mark");
    ctx.setLineDash([3, 3]);
    for (const step of at.steps) {
      const x = Math.round(plot.valToPos(step, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
    }
    ctx.restore();
  }}};
}

const wide = (lines) => {
  const values = lines.flatMap(([, [, ys]]) => ys).sort((one, other) => one - other), few = Math.floor(values.length / 50);
  return values.length > 1 && values[0] > 0 && values[values.length - 1 - few] / values[few] >= 200;
};

// lines: [[label, [xs, ys], index of its colour]]; a chart that is there gets new values only.
function chart(place, name, lines, {timed = false, restarts = []} = {}) {
  lines = lines.filter(([, [xs]]) => xs.length);
  if (!lines.length) return;
  const data = uPlot.join(lines.map(([, points]) => points));
  const key = `${place} ${name}`, shape = lines.map(([label]) => label).join("\n");
  let one = charts.get(key);
  if (one && one.shape === shape) {
    one.at.steps = restarts;
    one.plot.setData(data);
    return;
  }
  if (one) { one.watch.disconnect(); one.plot.destroy(); one.node.remove(); }
  const node = make("div", {className: "panel plot"}, make("h3", {textContent: name}));
  const under = make("div");
  node.append(under);
  $(place).append(node);
  const at = {steps: restarts};
  const axis = () => ({stroke: color("--soft"), grid: {stroke: color("--rule"), width: 1}, ticks: {show: false}, font: "11px sans-serif"});
  const compact = (plot, values) => values.map((value) => value === null ? "" : short(value));
  const plot = new uPlot({
    width: Math.max(200, under.clientWidth), height: 210, padding: [8, 16, 0, 0], plugins: [restartsDrawn(at)],
    scales: {x: {time: timed}, y: {distr: wide(lines) ? 3 : 1}},
    axes: [{...axis(), ...(timed ? {} : {values: (plot, values) => values.map((value) => Number.isInteger(value) ? short(value) : ""), size: 30})},
      {...axis(), size: 58, values: compact}],
    series: [timed ? {} : {label: "step"}, ...lines.map(([label, , index]) => ({
      label, stroke: color(`--line-${index % 8}`), width: 1.5, spanGaps: true, dash: index >= 8 ? [5, 3] : undefined,
      value: (plot, value) => number(value), points: {size: 5},
    }))],
  }, data, under);
  const watch = new ResizeObserver(() => plot.setSize({width: Math.max(200, under.clientWidth), height: 210}));
  watch.observe(node);
  charts.set(key, {plot, node, shape, watch, at});
}

// ---- one run

let opened = "";

async function run(id) {
  const [found, curves] = await Promise.all([ask(`api/run?${query([id])}`), ask(`api/curves?${query([id])}`)]);
  if (route().id !== id) return;
  const {row} = found;
  reading = !found.whole;
  document.title = `${row.run}: ${row.state}`;
  $("name").textContent = row.run;
  $("state").textContent = found.whole ? row.state : "its history is being read …";
  $("state").className = kind(row.state);
  $("reason").textContent = row.reason;
  $("headline").textContent = [found.target, row.workers && `${row.strategy} on ${row.workers} workers, ${row.cluster}`,
    row.started && `started ${new Date(row.started * 1000).toLocaleString()}`, row.note, found.folder].filter(Boolean).join(" · ");
  actions(found);
  tiles(found);
  const opens = new Set([...$("failures").querySelectorAll("details[open]")].map((one) => one.dataset.time));
  fill("failures", ...[...found.warnings.map((text) => make("p", {className: "warn", textContent: text})),
    ...(found.failures.length ? [make("h2", {textContent: "Failures"})] : []),
    ...found.failures.map((one) => {
      const node = make("details", {open: opens.has(String(one.time))},
        make("summary", {textContent: `${new Date(one.time * 1000).toLocaleString()}, attempt ${one.attempt}: ${one.text}`}),
        make("pre", {textContent: one.evidence || "It left nothing behind."}));
      node.dataset.time = one.time;
      return node;
    })]);
  draws(curves[id]);
  fill("best", ...found.best.map((one) => make("tr", {}, make("td", {}, one.name), ...[one.last, one.best].map((value) =>
    make("td", {className: "num"}, number(value))), make("td", {className: "num"}, plain(one.step)))));
  $("recipe").textContent = found.recipe;
  const ranks = ["0", ...found.ranks.filter((rank) => rank).map(String), "every"];
  if ($("rank").options.length !== ranks.length) {
    const before = $("rank").value;
    fill("rank", ...ranks.map((rank) => make("option", {value: rank, textContent: rank, selected: rank === before})));
  }
  if (opened !== id || (found.live && !$("find").value)) await output(id);
  opened = id;
}

function actions({row, live, whole, control}) {
  if (!control || row.state === "done") return fill("actions");
  const name = live ? "stop" : "resume";
  if (!whole || $("actions").dataset.for === `${row.run} ${name}` && $("actions").firstChild) return;
  $("actions").dataset.for = `${row.run} ${name}`;
  fill("actions", commanding(name, row.run));
}

function tiles({row, attempt, saved_step, samples_per_second, failures}) {
  const values = [["steps", row.total_steps ? `${plain(row.step)} of ${plain(row.total_steps)}` : plain(row.step)],
    ["checkpoint", saved_step === null ? "none" : `step ${plain(saved_step)}`],
    ["samples/s", samples_per_second ? plain(Math.round(samples_per_second)) : "-"], ["attempt", attempt], ["failures", failures.length],
    ...Object.entries(row.metrics).slice(0, 4).map(([name, value]) => [name, number(value)])];
  fill("tiles", ...values.map(([name, value]) => make("div", {className: "tile"}, make("span", {textContent: name}), make("b", {textContent: value}))));
}

function draws({steps, times, restarts}) {
  const names = [...new Set(Object.keys(steps).map((name) => name.replace(/^held-out /, "")))];
  for (const name of names) {
    const lines = [name, `held-out ${name}`].map((label, index) => [label, steps[label], index]).filter(([, points]) => points);
    chart("charts", name, lines, {restarts});
  }
  for (const [name, points] of Object.entries(times)) chart("charts", name, [[name, points, 2]], {timed: true});
}

async function output(id) {
  const rank = $("rank").value || "0", text = $("find").value;
  const found = await ask(`api/logs?${query([id])}&find=${encodeURIComponent(text)}${rank === "every" ? "" : `&rank=${rank}`}`);
  const lines = $("lines"), atEnd = lines.scrollTop + lines.clientHeight >= lines.scrollHeight - 20;
  const parts = found.lines.flatMap(([number, line]) => {
    const marked = [], low = line.toLowerCase(), wanted = text.toLowerCase();
    let begin = 0, at;
    while (wanted && (at = low.indexOf(wanted, begin)) >= 0) {
      marked.push(line.slice(begin, at), make("mark", {textContent: line.slice(at, at + wanted.length)}));
      begin = at + wanted.length;
    }
    return [rank === "every" ? `rank ${number} | ` : "", ...marked, line.slice(begin), "\n"];
  });
  fill("lines", ...parts);
  const lined = found.lines.length === found.most ? `the newest ${found.most} lines` : `${found.lines.length} ${found.lines.length === 1 ? "line" : "lines"}`;
  $("found").textContent = text ? `${lined} with “${text}”` : found.lines.length ? lined : "no output yet";
  if (atEnd || opened !== id) lines.scrollTop = lines.scrollHeight;
}

const searched = (event) => { event.preventDefault(); output(route().id).catch((error) => problem(error.message)); };
$("search").onsubmit = searched;
$("rank").onchange = searched;

// ---- runs beside each other

async function beside(ids) {
  const [found, curves] = await Promise.all([ask(`api/compare?${query(ids)}`), ask(`api/curves?${query(ids)}`)]);
  document.title = `${ids.length} runs`;
  $("how-many").textContent = ids.length === 1 ? ids[0] : `${ids.length} runs`;
  const names = Object.keys(found.lower).sort((one, other) => other.startsWith("held-out ") - one.startsWith("held-out "));
  const best = (name, row) => row.find((one) => one.name === name)?.best ?? null;
  const top = Object.fromEntries(names.map((name) => {
    const values = found.numbers.map((row) => best(name, row)).filter((value) => typeof value === "number");
    return [name, found.lower[name] ? Math.min(...values) : Math.max(...values)];
  }));
  fill("number-heads", make("th", {textContent: "run"}), make("th", {textContent: "state"}), make("th", {className: "num", textContent: "step"}),
    ...names.map((name) => make("th", {className: "num", textContent: `best ${name}`})));
  fill("numbers", ...ids.map((id, index) => {
    const key = make("i", {className: "key"});
    key.style.background = `var(--line-${index % 8})`;
    return make("tr", {}, make("td", {}, key, make("a", {href: `#/run/${encodeURIComponent(id)}`, textContent: found.names[index] || id})),
      make("td", {className: kind(found.rows[index].state)}, found.rows[index].state), make("td", {className: "num"}, plain(found.rows[index].step)),
      ...names.map((name) => {
        const value = best(name, found.numbers[index]);
        return make("td", {className: `num${value !== null && value === top[name] && ids.length > 1 ? " best" : ""}`}, number(value));
      }));
  }));
  fill("difference-heads", ...["key", ...found.names].map((text) => make("th", {textContent: text})));
  const differing = Object.entries(found.differences);
  fill("differences", ...(differing.length ? differing : [["the recipes are the same"]]).map(([key, values = []]) =>
    make("tr", {}, ...[key, ...values].map((text) => make("td", {}, text)))));
  for (const name of new Set(ids.flatMap((id) => Object.keys(curves[id].steps)))) {
    const lines = ids.map((id, index) => [found.names[index] || id, curves[id].steps[name], index]).filter(([, points]) => points);
    chart("charts-beside", name, lines);
  }
}

// ---- which page

function route() {
  const [, page = "", ...ids] = location.hash.split("/").map(decodeURIComponent);
  return {page: ["run", "compare"].includes(page) && ids.length ? page : "list", ids, id: ids[0] ?? ""};
}

let waiting = 0, drawn = "";

async function show() {
  clearTimeout(waiting);
  const {page, ids, id} = route(), name = location.hash;
  if (drawn !== name) {
    forget();
    drawn = name;
    opened = "";
    $("find").value = "";
    for (const [section, own] of [["list", "list"], ["run", "run"], ["beside", "compare"]]) $(section).hidden = page !== own;
    document.title = "dtrain board";
  }
  try {
    await (page === "run" ? run(id) : page === "compare" ? beside(ids) : list());
    problem("");
  } catch (error) {
    problem(error.message);
  }
  if (!document.hidden && drawn === location.hash) waiting = setTimeout(show, reading ? SOON : EVERY);
}

addEventListener("hashchange", show);
document.addEventListener("visibilitychange", () => { if (!document.hidden) show(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { forget(); show(); });
show();
