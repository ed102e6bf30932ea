// The tab "Dead neurons", and the report: pictures of runs, drawn from plain documents.
//
// `render()` is what TensorBoard calls in the plugin's frame; `show(root, source)` draws anywhere.
// A source answers runs(), overview(run), table(run), findings(run), units(run, site, first, last)
// and unit(run, site, unit): the tab's from the server, the report's from what it carries along.
//
// Names of runs, sites and remedies are data: they become text nodes and canvas text, never markup.
// What was not measured is hatched, grey or a gap, never drawn as zero. A cell that stands for
// several windows or units shows the worst of them, and the caption says so.

// ── sources ─────────────────────────────────────────────────────────────────────────────

export function render() {
  show(document.body, served());
}

/** Documents from the server; addresses are relative, so that any path prefix works. */
export function served() {
  const get = async (route, query = {}) => {
    let answer;
    try {
      answer = await fetch(`${route}?${new URLSearchParams(query)}`);
    } catch {
      throw new Error("The server does not answer.");
    }
    const found = await answer.json().catch(() => null);
    if (answer.ok && found) return found;
    throw new Error(found?.error ?? `The server answers ${answer.status}.`);
  };
  return {
    live: true,
    runs: () => get("runs"),
    overview: (run) => get("overview", { run }),
    table: (run) => get("table", { run }),
    findings: (run) => get("findings", { run }),
    units: (run, site, first, last) =>
      get("units", last === undefined ? { run, site } : { run, site, first, last }),
    unit: (run, site, unit) => get("unit", { run, site, unit }),
  };
}

/** Documents that a page carries along; what it does not carry is said, not guessed. */
export function embedded(docs) {
  const own = (table, key) =>
    table && Object.prototype.hasOwnProperty.call(table, key) ? table[key] : undefined;
  const find = (kind, ...keys) => {
    const found = keys.reduce(own, docs[kind]);
    if (found) return found;
    throw new Error(`This file does not hold ${WORDS[kind]} of ${keys.join(", ")}.`);
  };
  return {
    live: false,
    runs: async () => ({ runs: docs.runs }),
    overview: async (run) => find("overview", run),
    table: async (run) => find("table", run),
    findings: async (run) => find("findings", run),
    units: async (run, site) => find("units", run, site),
    unit: async (run, site, unit) => find("unit", run, site, String(unit)),
  };
}

const WORDS = {
  overview: "the picture",
  table: "the table",
  findings: "the advice",
  units: "the units",
  unit: "the figures of a unit",
};

const ARRAYS = { "<i4": Int32Array, "|u1": Uint8Array };
const decodedBefore = new WeakMap();

/** The array that a document holds as base64. */
function decoded(packed) {
  if (!packed) return null;
  let found = decodedBefore.get(packed);
  if (!found) {
    const text = atob(packed.data);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    found = new ARRAYS[packed.dtype](bytes.buffer);
    decodedBefore.set(packed, found);
  }
  return found;
}

// ── colours ─────────────────────────────────────────────────────────────────────────────

const STATES = ["unseen", "uncertain", "dead", "saturated", "rare", "alive"];
const [UNSEEN, UNCERTAIN, DEAD, SATURATED, RARE, ALIVE] = STATES.keys();
const [NEVER, REVIVED, TREATED, RELAPSED] = [0, 1, 2, 3]; // what became of a treated unit
const MISSING = 255; // an open fraction that was not measured, or not kept

// In both themes what is worse stands out more, by luminance too: darker on white, brighter on
// black. Zero is no part of the ramp, so that one dead unit in a million has a colour of its own.
const THEMES = {
  light: {
    page: "#ffffff", ink: "#1b2329", muted: "#5f6c76", line: "#dde3e8", soft: "#f4f6f8",
    accent: "#0b5cad", focus: "#0b5cad", mark: "#ffffff", rim: "#10202c", warn: "#8a3b00",
    error: "#921a53", warned: "#ee7a33",
    zero: "#dce6ec", hatch: "#c3ccd3", unseen: "#f0f2f4",
    ramp: ["#ffdf8f", "#fdb64f", "#ee7a33", "#cf3f3a", "#921a53", "#3a0b3d"],
    alive: ["#123f66", "#93cff4"], revived: ["#00553d", "#63dcb4"],
    aliveAlone: "#93a1ad", revivedAlone: "#7fa796",
    rare: "#e0b000", saturated: "#9b3fdd", deadFew: "#ee8855", dead: "#d55e00", relapsed: "#230a0a",
  },
  dark: {
    page: "#1f2327", ink: "#e6ebef", muted: "#9aa7b1", line: "#3a4249", soft: "#282d32",
    accent: "#7cc0ff", focus: "#7cc0ff", mark: "#ffffff", rim: "#000000", warn: "#ffb27a",
    error: "#fdf6a8", warned: "#f5812f",
    zero: "#2f3d49", hatch: "#56616a", unseen: "#262a2f",
    ramp: ["#8a3383", "#c2456f", "#d9494a", "#f5812f", "#fdbb3f", "#fdf6a8"],
    alive: ["#123a5c", "#93cff4"], revived: ["#00553d", "#63dcb4"],
    aliveAlone: "#5f6e7b", revivedAlone: "#557a6a",
    rare: "#f0e442", saturated: "#b85cff", deadFew: "#9a4a14", dead: "#e8691b", relapsed: "#fff3ec",
  },
};

let theme = THEMES.light;
let paints = null;

function rgb(text) {
  return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
}

/** A colour as one pixel of an ImageData, seen as Uint32 (little endian). */
function pixel([r, g, b]) {
  return ((255 << 24) | (Math.round(b) << 16) | (Math.round(g) << 8) | Math.round(r)) >>> 0;
}

function between(stops, share) {
  const at = Math.min(1, Math.max(0, share)) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const [a, b] = [rgb(stops[low]), rgb(stops[low + 1])];
  return a.map((value, i) => value + (b[i] - value) * (at - low));
}

const HATCHED = 0; // a transparent pixel: the hatching below shows through

/** Pixels by value, made once a theme. */
function prepared() {
  const ratio = Uint32Array.from({ length: 256 }, (_, i) => pixel(between(theme.ramp, i / 255)));
  const flat = (name) => pixel(rgb(theme[name]));
  const ramp = (name) =>
    Uint32Array.from({ length: 256 }, (_, i) =>
      i === MISSING ? flat(`${name}Alone`) : pixel(between(theme[name], i / 250)));
  return {
    ratio, zero: flat("zero"), unseen: flat("unseen"), page: flat("page"), rare: flat("rare"),
    saturated: flat("saturated"), relapsed: flat("relapsed"),
    alive: ramp("alive"), revived: ramp("revived"),
    dead: Uint32Array.from({ length: 251 }, (_, i) =>
      pixel(between([theme.deadFew, theme.dead], Math.sqrt(i / 250)))),
  };
}

function ratioPixel(dead, judged, seen) {
  if (!judged) return seen ? HATCHED : paints.unseen;
  return dead ? paints.ratio[Math.round(Math.sqrt(dead / judged) * 255)] : paints.zero;
}

/** `part`: how much of the cell is dead, in 250ths. */
function statePixel(state, open, fate, part = 250) {
  if (state === ALIVE) return fate === REVIVED ? paints.revived[open] : paints.alive[open];
  if (state === RARE) return fate === REVIVED ? paints.revived[Math.min(open, 2)] : paints.rare;
  if (state === DEAD) return fate === RELAPSED ? paints.relapsed : paints.dead[part];
  if (state === SATURATED) return fate === RELAPSED ? paints.relapsed : paints.saturated;
  return state === UNCERTAIN ? HATCHED : paints.unseen;
}

const SEVERITY = [0, 3, 5, 4, 2, 1]; // by state: which of several is shown

// ── words ───────────────────────────────────────────────────────────────────────────────

const whole = new Intl.NumberFormat("en", { useGrouping: true });
const count = (n) => whole.format(n).replaceAll(",", "\u202f");
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

function percent(share) {
  if (share === null || share === undefined || Number.isNaN(share)) return "–";
  if (share > 0 && share < 0.001) return "<0.1%";
  if (share < 1 && share > 0.999) return ">99.9%";
  return `${(share * 100).toFixed(share === 0 || share === 1 ? 0 : 1)}%`;
}

function figure(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3)
    ? value.toExponential(2)
    : String(Number(value.toPrecision(4)));
}

function brief(n) {
  if (n < 10000) return String(n);
  return n < 1e6 ? `${Number((n / 1e3).toFixed(1))}k` : `${Number((n / 1e6).toFixed(2))}M`;
}

/** A name as it is seen: characters that would turn it around or break it are shown as codes. */
function visible(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character) => {
    const code = character.codePointAt(0).toString(16);
    if (code.length > 4) return `\\U${code.padStart(8, "0")}`;
    return code.length > 2 ? `\\u${code.padStart(4, "0")}` : `\\x${code.padStart(2, "0")}`;
  });
}

const span = ([a, b], word) => (a === b ? `${word} ${a}` : `${word}s ${a}–${b}`);

// ── elements ────────────────────────────────────────────────────────────────────────────

/** An element; strings among its children become text in which nothing acts. */
function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined)
      element.setAttribute(key, value);
  }
  const there = children.filter((child) => child !== null && child !== undefined);
  element.append(...there.map((child) => (typeof child === "string" ? visible(child) : child)));
  return element;
}

const STYLE = `
.dw { box-sizing: border-box; min-height: 100vh; padding: 14px 20px 40px; background: var(--page);
  color: var(--ink); font: 13px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  font-variant-numeric: tabular-nums; }
.dw *, .dw *::before { box-sizing: border-box; }
.dw [hidden] { display: none !important; }
.dw h2 { font-size: 15px; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.dw p { margin: 0; }
.dw-bar { display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: center; margin-bottom: 12px; }
.dw-runs { display: flex; flex-wrap: wrap; gap: 6px; max-height: 92px; overflow: auto; padding: 2px; }
.dw-run { display: inline-flex; align-items: center; border: 1px solid var(--line);
  border-radius: 14px; padding: 0 10px 0 8px; height: 27px; max-width: 340px; }
.dw-run.on { border-color: var(--accent); background: var(--soft); }
.dw-run input { margin: 0 6px 0 0; accent-color: var(--accent); }
.dw button { font: inherit; color: inherit; background: none; border: 1px solid var(--line);
  border-radius: 6px; padding: 3px 10px; cursor: pointer; }
.dw button:hover { background: var(--soft); }
.dw button[aria-pressed="true"] { background: var(--soft); border-color: var(--accent);
  color: var(--accent); }
.dw-run button { border: 0; padding: 0; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.dw-run button:hover { background: none; text-decoration: underline; }
.dw-two { display: inline-flex; }
.dw-two button { border-radius: 0; margin-left: -1px; position: relative; }
.dw-two button[aria-pressed="true"] { z-index: 1; }
.dw-two button:first-child { border-radius: 6px 0 0 6px; margin: 0; }
.dw-two button:last-child { border-radius: 0 6px 6px 0; }
.dw input[type="search"] { font: inherit; color: inherit; background: var(--page); width: 190px;
  border: 1px solid var(--line); border-radius: 6px; padding: 4px 9px; }
.dw :focus-visible { outline: 2px solid var(--focus); outline-offset: 1px; }
.dw-muted { color: var(--muted); }
.dw-status:not(:empty) { color: var(--warn); margin: 0 0 10px; }
.dw-picture { position: relative; overflow-x: auto; overflow-y: hidden; border-radius: 3px;
  user-select: none; }
.dw-picture:focus-visible { outline-width: 1px; } /* its cursor shows where the focus is */
.dw-picture canvas, .dw-chart canvas { display: block; }
.dw-stack { position: relative; }
.dw canvas + canvas { position: absolute; left: 0; top: 0; }
.dw-captions { display: grid; margin: 2px 0 4px; align-items: end; overflow: hidden; }
.dw-captions b { font-weight: 600; display: block; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.dw-captions div { min-width: 0; overflow-wrap: anywhere; }
.dw-legend { display: flex; flex-wrap: wrap; gap: 6px 16px; align-items: center; font-size: 12px;
  color: var(--muted); margin: 6px 0 2px; }
.dw-legend span { display: inline-flex; align-items: center; gap: 6px; }
.dw-legend canvas { display: block; border-radius: 2px; }
.dw-hint { color: var(--muted); font-size: 12px; margin: 4px 0 18px; }
.dw-tip { position: fixed; z-index: 9; pointer-events: none; max-width: 380px; padding: 7px 10px;
  background: var(--page); color: var(--ink); border: 1px solid var(--line); border-radius: 6px;
  box-shadow: 0 3px 14px rgb(0 0 0 / 22%); font-size: 12px; overflow-wrap: anywhere; }
.dw-tip b { display: block; }
.dw-scroll { overflow-x: auto; }
.dw table { border-collapse: collapse; width: 100%; margin: 4px 0 8px; }
.dw th, .dw td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line);
  vertical-align: top; }
.dw th { white-space: nowrap; font-weight: 500; color: var(--muted); position: sticky; top: 0;
  background: var(--page); padding: 4px 2px; }
.dw th button { border: 0; padding: 1px 8px; color: inherit; font-weight: inherit; }
.dw th[aria-sort] button { color: var(--ink); }
.dw .left { text-align: left; overflow-wrap: anywhere; }
.dw td.left { min-width: 130px; }
.dw td .chip { display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  margin-right: 7px; vertical-align: -1px; border: 1px solid var(--line); }
.dw td button { border: 0; padding: 0; color: var(--accent); text-align: left; }
.dw details { margin: 14px 0 0; }
.dw summary { cursor: pointer; color: var(--muted); }
.dw details ul { margin: 6px 0; padding-left: 20px; overflow-wrap: anywhere; }
.dw-pin { position: relative; margin: 14px 0 0; overflow-x: auto; overflow-y: hidden; }
.dw-pin header { display: flex; gap: 14px; align-items: baseline; }
.dw-chart { position: relative; }
.dw-findings { list-style: none; margin: 0; padding: 0; max-width: 920px; }
.dw-findings li { border-left: 4px solid var(--line); margin: 0 0 14px; padding: 2px 0 2px 14px;
  overflow-wrap: anywhere; }
.dw-findings li[data-severity="error"] { border-color: var(--error); }
.dw-findings li[data-severity="warning"] { border-color: var(--warned); }
.dw-findings h3 { font-size: 13px; font-weight: 600; margin: 0 0 2px; }
.dw-findings p { margin: 2px 0; }
.dw-findings .dw-where { display: flex; flex-wrap: wrap; gap: 2px 12px; }
.dw-findings .dw-where button { border: 0; padding: 0; color: var(--accent); text-align: left; }
.dw-fix { position: relative; margin: 4px 0; }
.dw-fix pre { margin: 0; padding: 7px 84px 7px 10px; background: var(--soft); border-radius: 6px;
  overflow-x: auto; font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.dw-fix button { position: absolute; right: 5px; top: 4px; background: var(--page);
  padding: 1px 9px; }
.dw-said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
`;

/** Follow TensorBoard's own switch where there is one, the system's elsewhere. */
function followTheme(root, redraw) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let outside = null;
  try {
    const page = window.parent === window ? null : window.parent.document;
    outside = page?.querySelector("tb-webapp") ? page.body : null;
  } catch {
    outside = null; // a frame in somebody else's page
  }
  const apply = () => {
    const dark = outside ? outside.classList.contains("dark-mode") : system.matches;
    theme = dark ? THEMES.dark : THEMES.light;
    paints = prepared();
    root.dataset.theme = dark ? "dark" : "light";
    root.style.colorScheme = dark ? "dark" : "light";
    for (const name of ["page", "ink", "muted", "line", "soft", "accent", "focus", "warn", "error",
      "warned"])
      root.style.setProperty(`--${name}`, theme[name]);
    redraw();
  };
  system.addEventListener("change", apply);
  if (outside)
    new MutationObserver(apply).observe(outside, { attributes: true, attributeFilter: ["class"] });
  apply();
}

// ── canvas ──────────────────────────────────────────────────────────────────────────────

const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

function sized(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  const [w, t] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== t) canvas.height = t;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  context.imageSmoothingEnabled = false;
  context.font = FONT;
  return context;
}

function hatching(context) {
  const scale = Math.max(1, Math.round(window.devicePixelRatio || 1));
  const tile = document.createElement("canvas");
  tile.width = tile.height = 5 * scale;
  const inside = tile.getContext("2d");
  inside.fillStyle = theme.page;
  inside.fillRect(0, 0, tile.width, tile.height);
  inside.strokeStyle = theme.hatch;
  inside.lineWidth = scale;
  for (const shift of [-1, 0, 1]) {
    inside.beginPath();
    inside.moveTo(shift * tile.width, tile.width);
    inside.lineTo((shift + 1) * tile.width, 0);
    inside.stroke();
  }
  const pattern = context.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().scale(1 / (window.devicePixelRatio || 1)));
  return pattern;
}

function shortened(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let [low, high] = [0, text.length]; // the end of a path tells more than its start
  while (low < high) {
    const middle = (low + high) >> 1;
    if (context.measureText(`…${text.slice(middle)}`).width <= width) high = middle;
    else low = middle + 1;
  }
  return `…${text.slice(low)}`;
}

function niceStep(range, most) {
  const raw = range / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
}

/** Where an axis of windows has its ticks: the same for all runs beside each other. */
function ticks([from, to], width) {
  const step = Math.max(1, niceStep(to - from, width / 62));
  const found = [];
  for (let at = Math.ceil(from / step) * step; at < to; at += step) found.push(at);
  return found;
}

const columnOf = (columns, window) =>
  columns.findIndex(({ windows: [a, b] }) => a <= window && window <= b);

function dot(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = theme.mark;
  context.strokeStyle = theme.rim;
  context.lineWidth = 1.25;
  context.fill();
  context.stroke();
}

/** The window axis below a plot. */
function axis(context, { x, y, width, domain, columns, first }) {
  const [from, to] = domain;
  const at = (window) => x + ((window + 0.5 - from) / (to - from)) * width;
  context.textBaseline = "top";
  context.strokeStyle = theme.line;
  context.lineWidth = 1;
  let end = -Infinity;
  for (const window of ticks(domain, width)) {
    const middle = at(window);
    context.beginPath();
    context.moveTo(middle, y + 1);
    context.lineTo(middle, y + 5);
    context.stroke();
    context.textAlign = "center";
    context.fillStyle = theme.ink;
    context.fillText(String(window), middle, y + 7);
    const column = columns[columnOf(columns, window)];
    const text = column ? brief(column.steps[1]) : "";
    const half = context.measureText(text).width / 2;
    if (!column || middle - half < end) continue;
    context.fillStyle = theme.muted;
    context.fillText(text, middle, y + 20);
    end = middle + half + 8;
  }
  if (!first) return;
  context.textAlign = "right";
  context.fillStyle = theme.ink;
  context.fillText("window", x - 16, y + 7);
  context.fillStyle = theme.muted;
  context.fillText("last step", x - 16, y + 20);
}

// ── a picture ───────────────────────────────────────────────────────────────────────────

const [LANE, BELOW, GAP, RIGHT] = [16, 36, 22, 12];

/**
 * Rows × windows, one plot a run, on the same axes.
 *
 * A model has `rows` ([{key, label}]), `domain` ([first window, behind the last]), `highest`
 * (pixels of a row at most), and `plots`: each with `key`, `columns`, `rank` and `paint` (one entry
 * a cell, row by row), `marks` ([{row, window}]), `outlined` (Map row → window), and
 * `tell(row, column)`, which gives {title, lines}.
 */
class Picture {
  constructor(label, on) {
    this.on = on;
    this.model = null;
    this.cursor = { plot: 0, row: 0, column: 0 };
    this.hovered = null;
    this.dragged = null;
    this.captions = h("div", { class: "dw-captions" });
    this.base = h("canvas", { "aria-hidden": "true" });
    this.over = h("canvas", { "aria-hidden": "true" });
    this.box = h("div",
      { class: "dw-picture", tabindex: "0", role: "application",
        "aria-roledescription": "picture", "aria-label": label },
      this.captions, h("div", { class: "dw-stack" }, this.base, this.over));
    this.root = h("div", {}, this.box);
    this.listen();
    new ResizeObserver(() => this.resized()).observe(this.root);
  }

  resized() {
    if (this.model && this.root.clientWidth && this.root.clientWidth !== this.width) this.draw();
  }

  set(model) {
    const pointed = this.hovered && this.pointer;
    this.keepCursor(model);
    this.model = model;
    this.draw();
    if (pointed) this.hover(this.cellAt(pointed), pointed); // other cells may lie there now
  }

  keepCursor(model) {
    const [before, { plot, row, column }] = [this.model, this.cursor];
    const same = (list, key) => Math.max(0, list.findIndex((entry) => entry.key === key));
    const found = { plot: 0, row: 0, column: 0 };
    if (before?.plots[plot]) {
      found.plot = same(model.plots, before.plots[plot].key);
      found.row = same(model.rows, before.rows[row]?.key);
      const window = before.plots[plot].columns[column]?.windows[0];
      found.column = Math.max(0, columnOf(model.plots[found.plot]?.columns ?? [], window));
    }
    this.cursor = found;
    this.hovered = null;
  }

  layout() {
    const { rows, plots, highest } = this.model;
    this.width = this.root.clientWidth;
    const context = this.base.getContext("2d");
    context.font = FONT;
    const longest = rows.map((row) => row.label).sort((a, b) => b.length - a.length).slice(0, 40);
    const wanted = Math.max(58, ...longest.map((text) => context.measureText(text).width)) + 14;
    this.left = Math.ceil(Math.min(wanted, 280, this.width * 0.32));
    const n = plots.length;
    const free = this.width - this.left - RIGHT - GAP * (n - 1);
    this.wide = Math.max(150, Math.floor(free / Math.max(1, n)));
    const high = Math.max(220, Math.min(window.innerHeight - 290, 1100));
    this.each = Math.min(highest, Math.max(1, Math.floor(high / Math.max(1, rows.length))));
    this.tall = rows.length > high ? Math.floor(high) : this.each * rows.length;
    this.each = this.tall / Math.max(1, rows.length);
    this.whole = this.left + n * this.wide + (n - 1) * GAP + RIGHT;
    this.captions.style.gridTemplateColumns =
      `${this.left}px ` + plots.map(() => `${this.wide}px`).join(` ${GAP}px `);
    this.captions.style.width = `${this.whole}px`;
    const cells = plots.flatMap((plot, i) => [
      h("div", { style: `grid-column: ${2 + 2 * i}` }, h("b", { title: plot.key }, plot.key),
        h("span", { class: "dw-muted" }, plot.caption))]);
    this.captions.replaceChildren(...cells);
  }

  x(plot) {
    return this.left + plot * (this.wide + GAP);
  }

  /** The pixels of a plot: each shows the worst of the cells that fall on it. */
  image(plot) {
    const [from, to] = this.model.domain;
    const scale = window.devicePixelRatio || 1;
    const [rows, columns] = [this.model.rows.length, plot.columns.length];
    const R = Math.max(1, Math.min(rows, Math.round(this.tall * scale)));
    const C = Math.max(1, Math.min(to - from, Math.round(this.wide * scale)));
    const pixels = new Uint32Array(R * C).fill(paints.page);
    const best = new Float32Array(R * C).fill(-Infinity);
    const start = plot.columns.map(({ windows }) =>
      Math.floor(((windows[0] - from) * C) / (to - from)));
    const end = plot.columns.map(({ windows }, k) =>
      Math.max(start[k] + 1, Math.ceil(((windows[1] + 1 - from) * C) / (to - from))));
    for (let row = 0, cell = 0; row < rows; row++) {
      const offset = Math.floor((row * R) / rows) * C;
      for (let k = 0; k < columns; k++, cell++) {
        const rank = plot.rank[cell];
        for (let c = offset + start[k]; c < offset + end[k]; c++)
          if (rank > best[c]) {
            best[c] = rank;
            pixels[c] = plot.paint[cell];
          }
      }
    }
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [C, R];
    const image = new ImageData(new Uint8ClampedArray(pixels.buffer), C, R);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  draw() {
    if (!this.root.clientWidth) return; // another tab of TensorBoard's is shown
    this.layout();
    const context = sized(this.base, this.whole, LANE + this.tall + BELOW);
    this.labels(context);
    this.crowded = false;
    this.model.plots.forEach((plot, i) => {
      const [x, domain] = [this.x(i), this.model.domain];
      if (this.model.rows.length && plot.columns.length) {
        context.fillStyle = hatching(context);
        context.fillRect(x, LANE, this.wide, this.tall);
        context.drawImage(this.image(plot), x, LANE, this.wide, this.tall);
        this.grid(context, x);
        this.marks(context, plot, x);
      }
      const y = LANE + this.tall;
      axis(context,
        { x, y, width: this.wide, domain, columns: plot.columns, first: i === 0 });
    });
    this.overlay();
  }

  labels(context) {
    const every = Math.ceil(14 / this.each);
    context.textAlign = "right";
    context.textBaseline = "middle";
    const write = (row) => {
      const text = shortened(context, visible(this.model.rows[row].label), this.left - 14);
      context.fillText(text, this.left - 10, LANE + (row + 0.5) * this.each + 0.5);
    };
    const { rows, chosen = new Set() } = this.model; // chosen rows always have their label
    const near = (row) => [...chosen].some((other) => Math.abs(other - row) < every);
    context.fillStyle = theme.ink;
    for (let row = 0; row < rows.length; row += every) if (!near(row)) write(row);
    context.fillStyle = theme.accent;
    for (const row of chosen) write(row);
    context.fillStyle = theme.muted;
    if (this.model.unit) context.fillText(this.model.unit, this.left - 10, 6);
  }

  grid(context, x) {
    const [from, to] = this.model.domain;
    context.fillStyle = theme.page;
    if (this.each >= 6)
      for (let row = 1; row < this.model.rows.length; row++)
        context.fillRect(x, LANE + row * this.each - 0.5, this.wide, 1);
    if (this.each >= 6 && this.wide / (to - from) >= 7)
      for (let window = from + 1; window < to; window++)
        context.fillRect(this.at(x, window) - 0.5, LANE, 1, this.tall);
  }

  at(x, window) {
    const [from, to] = this.model.domain;
    return x + ((window - from) / (to - from)) * this.wide;
  }

  /** Treatments: a dot where each happened, a line above for all, treated units outlined. */
  marks(context, plot, x) {
    context.strokeStyle = theme.rim === "#000000" ? "#ffffff" : theme.rim;
    context.lineWidth = 1;
    context.fillStyle = context.strokeStyle;
    for (const { row, rows, window } of this.groups(plot.outlined)) {
      const [left, y] = [this.at(x, window + 1), LANE + row * this.each];
      const high = Math.max(1, rows * this.each);
      context.fillRect(x - 5, y, 3, high);
      if (this.each >= 4 && left < x + this.wide) // on thinner rows it would hide them
        context.strokeRect(left + 0.5, y + 0.5, x + this.wide - left - 1, Math.max(1, high - 1));
    }
    const lanes = new Set();
    const dotted = this.each >= 3 || plot.marks.length <= 200;
    this.crowded ||= !dotted;
    for (const { row, window } of plot.marks) {
      lanes.add(window);
      const wide = this.at(0, 1) - this.at(0, 0);
      const radius = Math.max(1.75, Math.min(4, this.each / 3.2, wide / 2.4));
      if (dotted)
        dot(context, this.at(x, window + 0.5), LANE + (row + 0.5) * this.each, radius);
    }
    context.fillStyle = theme.muted;
    for (const window of lanes) {
      const middle = this.at(x, window + 0.5);
      context.beginPath();
      context.moveTo(middle - 3.5, LANE - 9);
      context.lineTo(middle + 3.5, LANE - 9);
      context.lineTo(middle, LANE - 3);
      context.fill();
    }
  }

  /** Neighbours that were treated together have one outline, unless rows are high enough. */
  groups(outlined) {
    const found = [];
    for (const [row, window] of [...(outlined ?? [])].sort(([a], [b]) => a - b)) {
      const last = found.at(-1);
      if (this.each < 12 && last && last.window === window && last.row + last.rows === row)
        last.rows++;
      else found.push({ row, rows: 1, window });
    }
    return found;
  }

  overlay() {
    const context = sized(this.over, this.whole, LANE + this.tall + BELOW);
    if (!this.model?.rows.length) return;
    if (this.dragged?.moved) {
      const [a, b] = this.dragged.rows;
      context.fillStyle = `${theme.accent}44`;
      context.strokeStyle = theme.accent;
      const area = [this.left, LANE + a * this.each, this.whole - this.left - RIGHT,
        (b - a) * this.each];
      context.fillRect(...area);
      context.strokeRect(...area);
    }
    if (this.hovered) this.outline(context, this.hovered, theme.ink, 1);
    if (document.activeElement === this.box) this.outline(context, this.cursor, theme.focus, 2);
  }

  /** Where a cell lies, in pixels of the picture. */
  place({ plot, row, column }) {
    const { windows } = this.model.plots[plot].columns[column] ?? { windows: [0, 0] };
    const x = this.at(this.x(plot), windows[0]);
    return { x, y: LANE + row * this.each, high: this.each,
      wide: this.at(this.x(plot), windows[1] + 1) - x };
  }

  outline(context, cell, colour, width) {
    if (!this.model.plots[cell.plot]?.columns.length) return;
    const { x, y, wide, high } = this.place(cell);
    const [w, t] = [Math.max(5, wide), Math.max(5, high)];
    const area = [x + (wide - w) / 2, y + (high - t) / 2, w, t];
    context.lineWidth = width + 2;
    context.strokeStyle = theme.page;
    context.strokeRect(...area);
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.strokeRect(...area);
  }

  // ── pointer and keys ──

  listen() {
    const { box } = this;
    box.addEventListener("pointermove", (event) => this.moved(event));
    box.addEventListener("pointerleave", () => this.hover(null));
    box.addEventListener("pointerdown", (event) => {
      const cell = event.button === 0 && this.cellAt(event);
      if (!cell) return;
      this.dragged = { y: event.clientY, from: cell.exact, rows: [0, 0], moved: false };
      box.setPointerCapture(event.pointerId); // also when it is let go outside
    });
    box.addEventListener("pointerup", (event) => this.released(event));
    box.addEventListener("pointercancel", () => (this.dragged = null));
    box.addEventListener("focus", () => {
      this.overlay();
      this.say();
    });
    box.addEventListener("blur", () => {
      this.overlay();
      if (!this.hovered) this.on.tip(null);
    });
    box.addEventListener("keydown", (event) => this.pressed(event));
  }

  /** The cell under the pointer; of several on one pixel, the worst. */
  cellAt(event) {
    if (!this.model?.rows.length) return null;
    const area = this.base.getBoundingClientRect();
    const [px, py] = [event.clientX - area.left, event.clientY - area.top - LANE];
    const plot = this.model.plots.findIndex(
      (_, i) => px >= this.x(i) && px < this.x(i) + this.wide);
    if (plot < 0 || py < 0 || py >= this.tall) return null;
    const exact = Math.min(this.model.rows.length - 1, Math.floor(py / this.each));
    const [from, to] = this.model.domain;
    const per = (to - from) / this.wide; // windows on a pixel
    const window = from + (px - this.x(plot)) * per;
    const near = { rows: this.band(py), windows: [window, window + Math.max(0, per - 1)] };
    const found = this.worst(plot, near);
    return found && { plot, ...found, exact };
  }

  band(py) {
    const first = Math.floor(py / this.each);
    const rows = Math.max(1, Math.round(1 / this.each));
    return [Math.min(first, this.model.rows.length - 1),
      Math.min(this.model.rows.length, first + rows)];
  }

  worst(plot, { rows: [top, bottom], windows: [from, to] }) {
    const { columns, rank } = this.model.plots[plot];
    let found = null;
    let best = -Infinity;
    columns.forEach(({ windows: [a, b] }, column) => {
      if (a > to || b + 1 <= from) return;
      for (let row = top; row < bottom; row++)
        if (rank[row * columns.length + column] > best) {
          best = rank[row * columns.length + column];
          found = { row, column };
        }
    });
    return found;
  }

  moved(event) {
    const cell = this.cellAt(event);
    if (this.dragged && Math.abs(event.clientY - this.dragged.y) > 5) this.dragged.moved = true;
    if (this.dragged?.moved) {
      const row = cell ? cell.exact : this.dragged.rows[1] - 1;
      const { from } = this.dragged;
      this.dragged.rows = [Math.min(from, row), Math.max(from, row) + 1];
    }
    this.hover(cell, event);
  }

  hover(cell, event) {
    this.hovered = cell;
    this.pointer = event && { clientX: event.clientX, clientY: event.clientY };
    this.box.style.cursor = cell ? "pointer" : "default";
    this.overlay();
    this.on.tip(cell && this.tell(cell), event && { x: event.clientX, y: event.clientY });
  }

  released(event) {
    const [dragged, cell] = [this.dragged, this.cellAt(event)];
    this.dragged = null;
    if (dragged?.moved) {
      if (dragged.rows[1] - dragged.rows[0] < this.model.rows.length)
        this.on.zoom(...dragged.rows);
    } else if (dragged && cell) {
      this.cursor = { plot: cell.plot, row: cell.row, column: cell.column };
      this.on.open(this.cursor);
    }
    this.overlay();
  }

  tell({ plot, row, column }) {
    return this.model.plots[plot].tell(row, column);
  }

  say() {
    const plot = this.model?.plots[this.cursor.plot];
    if (!plot?.columns.length || !this.model.rows.length) return;
    const told = this.tell(this.cursor);
    this.on.said(`${told.title}. ${told.lines.join(". ")}`);
    const [{ x, y, wide, high }, area] = [this.place(this.cursor), this.base.getBoundingClientRect()];
    this.on.tip(told, { x: area.left + x + wide, y: area.top + y + high });
  }

  pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.model) return;
    const { rows, plots } = this.model;
    const middle = this.cursor.row;
    const keys = {
      ArrowUp: () => this.step(-1, 0), ArrowDown: () => this.step(1, 0),
      ArrowLeft: () => this.step(0, -1), ArrowRight: () => this.step(0, 1),
      PageUp: () => this.step(-10, 0), PageDown: () => this.step(10, 0),
      Home: () => this.step(0, -Infinity), End: () => this.step(0, Infinity),
      Enter: () => plots.length && rows.length && this.on.open(this.cursor),
      Escape: () => this.on.back(),
      "+": () => this.on.zoom(Math.floor(middle / 2), Math.ceil((middle + rows.length) / 2)),
      "-": () => this.on.wider(), 0: () => this.on.zoom(null),
    };
    keys[" "] = keys.Enter;
    keys["="] = keys["+"];
    if (!keys[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  }

  step(down, along) {
    const { rows, plots } = this.model;
    const limit = (value, length) => Math.max(0, Math.min(length - 1, value));
    let { plot, row, column } = this.cursor;
    row = limit(row + down, rows.length);
    column += along;
    if (Number.isFinite(along) && column < 0 && plot > 0) column = plots[--plot].columns.length - 1;
    else if (Number.isFinite(along) && column >= plots[plot].columns.length && plots[plot + 1])
      [plot, column] = [plot + 1, 0];
    this.cursor = { plot, row, column: limit(column, plots[plot].columns.length) };
    this.overlay();
    this.say();
  }

  /** Where a cell is on the page: for tests. */
  point(plot, row, column) {
    const [{ x, y, wide, high }, area] =
      [this.place({ plot, row, column }), this.base.getBoundingClientRect()];
    return { x: area.left + x + wide / 2, y: area.top + y + high / 2 };
  }
}

/** All windows of some documents, as one axis. */
function domainOf(docs) {
  const ends = docs.flatMap(({ columns }) =>
    columns.length ? [columns[0].windows[0], columns.at(-1).windows[1] + 1] : []);
  return ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
}

// ── what the pictures show ──────────────────────────────────────────────────────────────

/** The cell (row, column) of an overview. */
function layerCell(doc, row, column) {
  const at = row * doc.columns.length + column;
  const [dead, judged] = [decoded(doc.dead)[at], decoded(doc.judged)[at]];
  const { windows, steps } = doc.columns[column];
  const seen = Boolean(decoded(doc.seen)[at]);
  const ratio = judged ? dead / judged : null;
  return { site: doc.sites[row].name, units: doc.sites[row].units, windows, steps, dead, judged,
    seen, ratio };
}

/** Which window of a column is shown, if that can be told. */
function shownWindow(doc, row, column) {
  const { windows: [first, last] } = doc.columns[column];
  const each = Math.ceil(doc.windows / doc.columns.length);
  const held = Math.min(each, doc.windows - column * each);
  const at = decoded(doc.at)[row * doc.columns.length + column] - column * each;
  return first !== last && last - first + 1 === held && at >= 0 ? first + at : null;
}

function tellLayer(doc, row, column, marks) {
  const cell = layerCell(doc, row, column);
  const lines = [`${span(cell.windows, "window")}, ${span(cell.steps, "step")}`];
  if (cell.judged) {
    const units = `${count(cell.dead)} of ${count(cell.judged)} judged units`;
    lines.push(`${percent(cell.ratio)} dead: ${units}`);
    if (cell.judged < cell.units) lines.push(`${count(cell.units - cell.judged)} not judged`);
    const shown = shownWindow(doc, row, column);
    if (shown !== null) lines.push(`the worst of them is window ${shown}`);
  } else lines.push(cell.seen ? "not judged: too little evidence" : "unseen: it did not run");
  for (const mark of marks)
    if (mark.row === row && mark.window >= cell.windows[0] && mark.window <= cell.windows[1])
      lines.push(`${mark.remedy} on ${plural(mark.units, "unit")} after window ${mark.window}`);
  return { title: cell.site, lines };
}

function severity(doc, row) {
  const [dead, judged] = [decoded(doc.dead), decoded(doc.judged)];
  const base = row * doc.columns.length;
  let [now, worst] = [-1, -1];
  for (let k = doc.columns.length - 1; k >= 0; k--) {
    if (!judged[base + k]) continue;
    const ratio = dead[base + k] / judged[base + k];
    if (now < 0) now = ratio;
    worst = Math.max(worst, ratio);
  }
  return [now, worst];
}

/** The names of several lists, each before what it comes before in its own. */
function merged([first = [], ...others]) {
  const all = [...first];
  const known = new Set(all);
  for (const names of others) {
    let [fresh, at] = [[], 0];
    for (const name of names) {
      if (!known.has(name)) {
        fresh.push(name);
        known.add(name);
        continue;
      }
      if (all[at] !== name) at = all.indexOf(name);
      if (fresh.length) all.splice(at, 0, ...fresh);
      at += fresh.length + 1;
      fresh = [];
    }
    all.splice(at, 0, ...fresh);
  }
  return all;
}

/** The sites of all runs: in the order of the data, as the network flows, or the worst first. */
function siteNames(docs, order, filter) {
  const names = merged(docs.map((doc) => doc.sites.map((site) => site.name)));
  const wanted = filter.toLowerCase();
  const found = names.filter((name) => name.toLowerCase().includes(wanted));
  if (order !== "severity") return found;
  const grades = new Map(found.map((name) => [name, [-1, -1]]));
  for (const doc of docs)
    doc.sites.forEach(({ name }, row) => {
      const [before, after] = [grades.get(name), severity(doc, row)];
      if (before) grades.set(name, before.map((value, i) => Math.max(value, after[i])));
    });
  return found.sort((a, b) => {
    const [left, right] = [grades.get(a), grades.get(b)];
    return right[0] - left[0] || right[1] - left[1];
  });
}

function layersPlot(run, doc, names) {
  const index = new Map(doc.sites.map((site, row) => [site.name, row]));
  const [dead, judged, seen] = [doc.dead, doc.judged, doc.seen].map(decoded);
  const [rows, K] = [names.map((name) => index.get(name) ?? -1), doc.columns.length];
  const rank = new Float32Array(rows.length * K).fill(-3);
  const paint = new Uint32Array(rows.length * K).fill(paints.page);
  rows.forEach((row, r) => {
    if (row < 0) return;
    for (let k = 0, from = row * K, to = r * K; k < K; k++, from++, to++) {
      paint[to] = ratioPixel(dead[from], judged[from], seen[from]);
      rank[to] = judged[from] ? dead[from] / judged[from] : seen[from] ? -1 : -2;
    }
  });
  const shown = new Map(rows.map((row, r) => [row, r]));
  const marks = doc.treatments.map((mark) => ({ ...mark, row: shown.get(mark.row) ?? -1 }));
  const tell = (r, k) =>
    rows[r] < 0
      ? { title: names[r], lines: [`not in the run ${run}`] }
      : tellLayer(doc, rows[r], k, doc.treatments);
  return { key: run, caption: layersCaption(doc), columns: doc.columns, rank, paint, tell,
    marks: marks.filter((mark) => mark.row >= 0) };
}

function layersCaption(doc) {
  const K = doc.columns.length;
  if (!K) return "no window yet";
  const [dead, judged] = [decoded(doc.dead), decoded(doc.judged)];
  let [all, known] = [0, 0];
  doc.sites.forEach((_, row) => {
    all += dead[row * K + K - 1];
    known += judged[row * K + K - 1];
  });
  const each = Math.ceil(doc.windows / K);
  const parts = [
    known ? `${percent(all / known)} dead ${each > 1 ? "at last" : "now"} (${count(all)} of `
      + `${plural(known, "judged unit")})` : "nothing judged in the last window",
    plural(doc.windows, "window"),
    plural(doc.treatments.length, "treatment")];
  if (each > 1) parts.push(`each column is ${each} windows, the worst is shown`);
  if (doc.damaged) parts.push(`${plural(doc.damaged, "damaged record")} left out`);
  return parts.join(" · ");
}

function unitCell(doc, row, column) {
  const at = row * doc.columns.length + column;
  const [share, fate] = [decoded(doc.open)[at], decoded(doc.fate)?.[at] ?? NEVER];
  const { windows, steps } = doc.columns[column];
  return { units: doc.rows[row], windows, steps, state: decoded(doc.state)[at],
    dead: doc.dead ? decoded(doc.dead)[at] / 250 : null,
    open: share === MISSING ? null : share / 250, fate };
}

const FATES = ["", "revived", "treated", "relapsed"];

function stateWords(state, fate) {
  const told = state >= DEAD && fate ? FATES[fate] : "";
  return told ? `${STATES[state]}, ${told}` : STATES[state];
}

function tellUnits(doc, row, column) {
  const cell = unitCell(doc, row, column);
  const [first, last] = cell.units;
  const several = last - first > 1 || cell.windows[0] !== cell.windows[1];
  const lines = [`${span(cell.windows, "window")}, ${span(cell.steps, "step")}`];
  lines.push(`${several ? "at worst " : ""}${stateWords(cell.state, cell.fate)}`);
  if (cell.dead) lines.push(`${percent(cell.dead)} of the cell dead`);
  lines.push(cell.open === null
    ? "fraction of open gate: not measured or not kept"
    : `gate open on ${percent(cell.open)}${several ? " on average" : ""}`);
  for (const { units, window, remedy } of doc.treatments) {
    if (window < cell.windows[0] || window > cell.windows[1]) continue;
    const touched = units.filter((unit) => unit >= first && unit < last).length;
    if (touched)
      lines.push(`${remedy}${last - first > 1 ? ` on ${plural(touched, "unit")}` : ""} after `
        + `window ${window}`);
  }
  return { title: last - first > 1 ? `units ${first}–${last - 1}` : `unit ${first}`, lines };
}

/** The rows of a document between two units. */
function rowsBetween(doc, [first, last]) {
  return doc.rows.flatMap(([a, b], row) => (a >= first && b <= last ? [row] : []));
}

function unitsPlot(run, doc, keys) {
  const [state, open, fate, part] = [doc.state, doc.open, doc.fate, doc.dead].map(decoded);
  const K = doc.columns.length;
  const index = new Map(doc.rows.map(([a, b], row) => [`${a}-${b}`, row]));
  const rows = keys.map((key) => index.get(key) ?? -1);
  const rank = new Float32Array(rows.length * K).fill(-1);
  const paint = new Uint32Array(rows.length * K).fill(paints.page);
  rows.forEach((row, r) => {
    if (row < 0) return;
    for (let k = 0, from = row * K, to = r * K; k < K; k++, from++, to++) {
      const what = fate ? fate[from] : NEVER;
      paint[to] = statePixel(state[from], open[from], what, part?.[from]);
      rank[to] = SEVERITY[state[from]] + (what === RELAPSED ? 0.5 : what === REVIVED ? 0.2 : 0)
        + (part ? part[from] / 1000 : 0);
    }
  });
  const { marks, outlined } = treatedRows(doc, new Map(rows.map((row, r) => [row, r])));
  const tell = (r, k) =>
    rows[r] < 0
      ? { title: `units ${keys[r]}`, lines: [`not in the run ${run}`] }
      : tellUnits(doc, rows[r], k);
  return { key: run, caption: unitsCaption(doc), columns: doc.columns, rank, paint, tell, marks,
    outlined };
}

function treatedRows(doc, shown) {
  const [marks, outlined] = [[], new Map()];
  if (!doc.rows.length) return { marks, outlined };
  const [first, size] = [doc.rows[0][0], doc.rows[0][1] - doc.rows[0][0]];
  for (const { units, window } of doc.treatments)
    for (const row of new Set(units.map((unit) => Math.floor((unit - first) / size)))) {
      const r = shown.get(row);
      if (r === undefined) continue;
      marks.push({ row: r, window });
      outlined.set(r, Math.min(window, outlined.get(r) ?? Infinity));
    }
  return { marks, outlined };
}

function unitsCaption(doc) {
  const K = doc.columns.length;
  const each = K ? Math.ceil(doc.windows / K) : 1;
  const size = doc.rows.length ? doc.rows[0][1] - doc.rows[0][0] : 1;
  const parts = [plural(doc.units, "unit"), plural(doc.windows, "window")];
  if (size > 1) parts.push(`each row is ${size} units, the worst is shown`);
  if (each > 1) parts.push(`each column is ${each} windows, the worst is shown`);
  if (doc.kept < doc.windows) {
    const kept = `${count(doc.kept)} of ${plural(doc.windows, "window")}`;
    parts.push(`fractions of open gates were kept in ${kept}`);
  }
  return parts.join(" · ");
}

// ── a pinned unit ───────────────────────────────────────────────────────────────────────

const [CHART, STRIP] = [132, 8];

/** Where a unit's figures were measured, in stretches without a gap. */
function stretches(doc) {
  const found = [];
  doc.mean.forEach((value, k) => {
    if (value === null) return;
    const last = found.at(-1);
    if (last && last.at(-1) === k - 1) last.push(k);
    else found.push([k]);
  });
  return found;
}

const CURVES = "pre-activation: line mean, band ± std, thin lines min and max; gaps were not "
  + "measured or not kept";

class Pin {
  constructor(unit, on) {
    this.unit = unit;
    this.on = on;
    this.docs = [];
    this.at = null;
    this.base = h("canvas", { "aria-hidden": "true" });
    this.over = h("canvas", { "aria-hidden": "true" });
    this.box = h("div", { class: "dw-chart", tabindex: "0", role: "application",
      "aria-roledescription": "chart" }, this.base, this.over);
    this.told = h("span", { class: "dw-muted" });
    this.root = h("section", { class: "dw-pin", "data-unit": unit },
      h("header", {}, h("h2", {}, `Unit ${unit}`), this.told,
        h("button", { onclick: () => on.unpin(unit), "aria-label": `Unpin unit ${unit}` },
          "Unpin")), this.box);
    this.box.addEventListener("pointermove", (event) => this.hover(event));
    this.box.addEventListener("pointerleave", () => this.point(null));
    this.box.addEventListener("blur", () => this.point(null));
    this.box.addEventListener("keydown", (event) => this.pressed(event));
  }

  /** `docs`: one a run, null where the run has no such unit; drawn below the picture's plots. */
  set(docs, picture, problems) {
    [this.docs, this.picture] = [docs, picture];
    this.known = docs.some((doc) => doc?.mean.some((value) => value !== null));
    const words = this.known ? CURVES : "its state; no figures of it were measured and kept";
    this.told.textContent = problems.length ? visible(problems.join(" ")) : words;
    this.box.setAttribute("aria-label",
      `Unit ${this.unit}: pre-activation over time. Left and right arrows read the windows.`);
    this.draw();
  }

  bounds() {
    let [low, high] = [0, 0]; // a missing value changes neither
    for (const doc of this.docs.filter(Boolean))
      for (const value of [doc.min, doc.max, doc.mean].flat())
        [low, high] = [Math.min(low, value), Math.max(high, value)];
    const room = (high - low || 1) * 0.06;
    return [low - room, high + room];
  }

  draw() {
    const { picture } = this;
    if (!picture?.model || !picture.root.clientWidth) return;
    const context = sized(this.base, picture.whole, 8 + CHART + STRIP + 4 + BELOW);
    const [low, high] = this.bounds();
    this.y = (value) => 8 + (1 - (value - low) / (high - low)) * CHART;
    picture.model.plots.forEach((plot, i) => {
      const x = picture.x(i);
      this.frame(context, x, low, high, i === 0);
      const doc = this.docs[i];
      if (doc) this.curve(context, doc, x);
      axis(context, { x, y: 8 + CHART + STRIP + 4, width: picture.wide,
        domain: picture.model.domain, columns: doc ? doc.columns : [], first: i === 0 });
    });
    this.point(this.at);
  }

  frame(context, x, low, high, first) {
    const step = niceStep(high - low, 4);
    context.lineWidth = 1;
    for (let k = Math.ceil(low / step); k * step <= high; k++) {
      const y = Math.round(this.y(k * step)) + 0.5;
      context.strokeStyle = k === 0 ? theme.muted : theme.line;
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(x + this.picture.wide, y);
      context.stroke();
      if (!first || !this.known) continue;
      context.fillStyle = theme.muted;
      context.textAlign = "right";
      context.textBaseline = "middle";
      context.fillText(figure(k * step), x - 10, y);
    }
  }

  middle(doc, x, k) {
    const { windows: [a, b] } = doc.columns[k];
    return this.picture.at(x, (a + b + 1) / 2);
  }

  curve(context, doc, x) {
    const at = (k) => this.middle(doc, x, k);
    for (const part of stretches(doc)) {
      this.band(context, doc, part, at);
      for (const [name, width, alpha] of [["min", 1, "99"], ["max", 1, "99"], ["mean", 2, ""]]) {
        context.strokeStyle = `${theme.accent}${alpha}`;
        context.lineWidth = width;
        context.beginPath();
        const known = part.filter((k) => doc[name][k] !== null);
        known.forEach((k) => context.lineTo(at(k), this.y(doc[name][k])));
        if (known.length === 1) context.arc(at(known[0]), this.y(doc[name][known[0]]), 0.75, 0, 7);
        context.stroke();
      }
    }
    const y = 8 + CHART + 3;
    context.fillStyle = hatching(context);
    context.fillRect(x, y, this.picture.wide, STRIP);
    doc.columns.forEach(({ windows: [a, b] }, k) => {
      const colour = statePixel(doc.state[k], this.share(doc, k), doc.fate?.[k] ?? NEVER);
      if (colour === HATCHED) return;
      const left = Math.floor(this.picture.at(x, a));
      context.fillStyle = `rgb(${colour & 255} ${(colour >> 8) & 255} ${(colour >> 16) & 255})`;
      context.fillRect(left, y, Math.ceil(this.picture.at(x, b + 1)) - left, STRIP);
    });
    for (const { window } of doc.treatments) this.treated(context, this.picture.at(x, window + 1));
  }

  share(doc, k) {
    const value = doc.open_fraction[k];
    return value === null ? MISSING : Math.round(value * 250);
  }

  band(context, doc, part, at) {
    context.fillStyle = `${theme.accent}33`;
    const known = part.filter((k) => doc.std[k] !== null);
    const half = known.length === 1 ? 2 : 0;
    context.beginPath();
    known.forEach((k) => context.lineTo(at(k) - half, this.y(doc.mean[k] + doc.std[k])));
    if (half) known.forEach((k) => context.lineTo(at(k) + half, this.y(doc.mean[k] + doc.std[k])));
    if (half) known.forEach((k) => context.lineTo(at(k) + half, this.y(doc.mean[k] - doc.std[k])));
    known.reverse().forEach((k) => context.lineTo(at(k) - half, this.y(doc.mean[k] - doc.std[k])));
    context.fill();
  }

  treated(context, x) {
    context.strokeStyle = theme.ink;
    context.lineWidth = 1;
    context.setLineDash([3, 3]);
    context.beginPath();
    context.moveTo(x, 8);
    context.lineTo(x, 8 + CHART);
    context.stroke();
    context.setLineDash([]);
    dot(context, x, 6, 3.5);
  }

  hover(event) {
    const area = this.base.getBoundingClientRect();
    const px = event.clientX - area.left;
    const plot = this.docs.findIndex((doc, i) =>
      doc && px >= this.picture.x(i) && px < this.picture.x(i) + this.picture.wide);
    if (plot < 0) return this.point(null);
    const [from, to] = this.picture.model.domain;
    const window = Math.floor(from + ((px - this.picture.x(plot)) / this.picture.wide) * (to - from));
    const column = columnOf(this.docs[plot].columns, window);
    return this.point(column < 0 ? null : { plot, column }, { x: event.clientX, y: event.clientY });
  }

  point(at, where) {
    this.at = at && this.docs[at.plot] ? at : null;
    if (!this.picture) return;
    const context = sized(this.over, this.picture.whole, 8 + CHART + STRIP + 4 + BELOW);
    if (!this.at) return void this.on.tip(null);
    const doc = this.docs[at.plot];
    const x = this.middle(doc, this.picture.x(at.plot), at.column);
    context.fillStyle = `${theme.ink}66`;
    context.fillRect(x - 0.5, 8, 1, CHART + STRIP + 3);
    const told = this.tell(doc, at.column);
    const area = this.base.getBoundingClientRect();
    this.on.tip(told, where ?? { x: area.left + x, y: area.top + 30 });
  }

  tell(doc, k) {
    const { windows, steps } = doc.columns[k];
    const lines = [`${span(windows, "window")}, ${span(steps, "step")}`,
      stateWords(doc.state[k], doc.fate?.[k] ?? NEVER)];
    if (doc.mean[k] === null) lines.push("no figures: not measured or not kept");
    else {
      lines.push(`mean ${figure(doc.mean[k])} ± ${figure(doc.std[k])}`);
      lines.push(`from ${figure(doc.min[k])} to ${figure(doc.max[k])}`);
      lines.push(`gate open on ${percent(doc.open_fraction[k])}`);
    }
    for (const { window, remedy } of doc.treatments)
      if (window >= windows[0] && window <= windows[1])
        lines.push(`${remedy} after window ${window}`);
    return { title: `unit ${doc.unit}`, lines };
  }

  pressed(event) {
    const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const plot = this.at?.plot ?? this.docs.findIndex(Boolean);
    if (event.key === "Escape") return this.on.back();
    if (!along || plot < 0) return;
    event.preventDefault();
    const columns = this.docs[plot].columns.length;
    const column = Math.max(0, Math.min(columns - 1, (this.at?.column ?? -1) + along));
    this.point({ plot, column });
    const told = this.tell(this.docs[plot], column);
    this.on.said(`${told.title}. ${told.lines.join(". ")}`);
  }
}

// ── legends ─────────────────────────────────────────────────────────────────────────────

/** A small canvas that shows what a cell looks like. */
function swatch(width, draw) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  draw(sized(canvas, width, 12), width);
  return canvas;
}

const css = (parts) => `rgb(${parts.map(Math.round).join(" ")})`;

function entry(words, paint, width = 16) {
  const draw = (context) => {
    for (let x = 0; x < width; x++) {
      context.fillStyle = typeof paint === "function" ? paint(x / (width - 1), context) : paint;
      context.fillRect(x, 0, 1, 12);
    }
  };
  return h("span", {}, swatch(width, draw), words);
}

const hatchedEntry = (words) =>
  h("span", {}, swatch(16, (context, width) => {
    context.fillStyle = hatching(context);
    context.fillRect(0, 0, width, 12);
  }), words);

const treatedEntry = (words) =>
  h("span", {}, swatch(12, (context) => dot(context, 6, 6, 4)), words);

/** The ratio's scale, with its ticks where they belong: it goes with the square root. */
function ratioLegend() {
  const [wide, canvas] = [220, h("canvas", { "aria-hidden": "true" })];
  const context = sized(canvas, wide + 30, 26);
  for (let x = 0; x < wide; x++) {
    context.fillStyle = css(between(theme.ramp, x / (wide - 1)));
    context.fillRect(x, 0, 1, 12);
  }
  context.fillStyle = theme.muted;
  context.textBaseline = "top";
  context.textAlign = "left";
  context.fillText("one unit", 0, 14);
  for (const share of [0.1, 0.25, 0.5, 1]) {
    context.textAlign = "center";
    context.fillText(`${share * 100}%`, Math.sqrt(share) * wide, 14);
  }
  const label = "Colours of the dead ratio, from one unit to 100%";
  return h("span", { role: "img", "aria-label": label }, "dead:", canvas);
}

function layersLegend() {
  return [entry("0% dead", theme.zero), ratioLegend(), hatchedEntry("not judged"),
    entry("unseen", theme.unseen), treatedEntry("treated")];
}

function unitsLegend(pooled) {
  const dead = (share) => css(between([theme.deadFew, theme.dead], Math.sqrt(share)));
  const ramp = (name) => (share) => css(between(theme[name], share));
  return [
    entry("alive: gate open 0–100%", ramp("alive"), 60),
    entry("revived: the same after a treatment", ramp("revived"), 60),
    entry("open fraction not kept", (share) => (share < 0.5 ? theme.aliveAlone : theme.revivedAlone)),
    entry("rare", theme.rare), entry("saturated", theme.saturated),
    pooled ? entry("dead: one to all of a cell", dead, 60) : entry("dead", theme.dead),
    entry("relapsed", theme.relapsed), hatchedEntry("uncertain"), entry("unseen", theme.unseen),
    treatedEntry("treated, outlined from then on")];
}

// ── the table ───────────────────────────────────────────────────────────────────────────

const share = (cell) => (cell ? cell.dead / cell.judged : null);

function treatmentWords({ remedy, units, window }) {
  return `${remedy} on ${plural(units, "unit")} after window ${window}`;
}

const RESULTS = [["revived", "revived"], ["relapsed", "relapsed"], ["still_dead", "still dead"],
  ["open", "not judged yet"]];

function resultWords(result) {
  if (!result) return "–";
  const known = RESULTS.filter(([key]) => result[key]);
  return known.map(([key, words]) => `${count(result[key])} ${words}`).join(", ") || "–";
}

const ratioWords = (cell) =>
  cell ? `${percent(share(cell))} (${count(cell.dead)}/${count(cell.judged)})` : "–";

/** [heading, what is sorted by, what is shown, whether it is text] */
const COLUMNS = [
  ["Site", (row) => row.order, (row) => row.site, true],
  ["Units", (row) => row.units, (row) => count(row.units)],
  ["Dead now", (row) => share(row.now), (row) => ratioWords(row.now)],
  ["At its worst", (row) => share(row.worst),
    (row) => (row.worst ? `${ratioWords(row.worst)}, window ${row.worst.window}` : "–")],
  ["Wasted parameters", (row) => row.wasted ?? null,
    (row) => (typeof row.wasted === "number" ? count(row.wasted) : "–")],
  ["Sparsity", (row) => row.sparsity, (row) => percent(row.sparsity)],
  ["Dormant", (row) => row.dormant, (row) => percent(row.dormant)],
  ["Last treatment", (row) => row.last?.window ?? null,
    (row) => (row.last ? treatmentWords(row.last) : "–"), true],
  ["Its result", (row) => (row.last ? (row.result?.revived ?? 0) / row.last.units : null),
    (row) => resultWords(row.result), true],
  ["Advice", (row) => adviceWords(row) || null, (row) => adviceWords(row) || "–", true],
];

/** What to do about a layer: a sentence on its dead units, and the ids of findings on it. */
function adviceWords({ advice, findings = [] }) {
  const ids = [...new Set(findings)].join(", ");
  return [advice, ids && `See Advice: ${ids}.`].filter(Boolean).join(" ");
}

const ROWS = 200;

function compare(a, b) {
  if (a === null || a === undefined) return b === null || b === undefined ? 0 : 1;
  if (b === null || b === undefined) return -1;
  return typeof a === "string" ? a.localeCompare(b) : a - b;
}

class Table {
  constructor(on) {
    this.on = on;
    this.sort = { column: 0, down: false };
    this.all = false;
    this.head = h("tr");
    this.body = h("tbody");
    this.more = h("p", { class: "dw-muted" });
    this.root = h("section", { "aria-label": "Table of the layers" }, h("div", { class: "dw-scroll" },
      h("table", { class: "dw-table" }, h("thead", {}, this.head), this.body)), this.more);
  }

  /** `rows`: those of all runs, each with its `run` and `order`. */
  set(rows, several, results) {
    [this.rows, this.several] = [rows, several];
    this.left = results.filter((known) => known && known[0] < known[1]);
    this.draw();
  }

  headings() {
    const cells = COLUMNS.map(([words, , , text], column) => {
      const on = this.sort.column === column;
      const sorted = on ? (this.sort.down ? "descending" : "ascending") : null;
      const arrow = on ? (this.sort.down ? " ↓" : " ↑") : "";
      return h("th", { scope: "col", class: text ? "left" : "", "aria-sort": sorted },
        h("button", { onclick: () => this.by(column), "data-column": column }, words + arrow));
    });
    if (this.several) cells.splice(1, 0, h("th", { scope: "col", class: "left" }, "Run"));
    return cells;
  }

  by(column) {
    const { sort } = this;
    this.sort = { column, down: sort.column === column ? !sort.down : column > 0 };
    this.draw();
    this.head.querySelector(`[data-column="${column}"]`).focus();
  }

  draw() {
    const key = COLUMNS[this.sort.column][1];
    const sign = this.sort.down ? -1 : 1;
    const known = (row) => key(row) !== null && key(row) !== undefined;
    const sorted = [...this.rows].sort((a, b) => // what is not known comes last in both directions
      known(a) && known(b) ? sign * compare(key(a), key(b)) : compare(key(a), key(b)));
    const shown = this.all ? sorted : sorted.slice(0, ROWS);
    const focused = document.activeElement?.dataset?.column;
    this.head.replaceChildren(...this.headings());
    if (focused) this.head.querySelector(`[data-column="${focused}"]`)?.focus();
    this.body.replaceChildren(...shown.map((row) => this.line(row)));
    this.more.replaceChildren(...this.left.map(([known, all]) =>
      `Results were worked out for the ${count(known)} layers treated last, of ${count(all)}. `));
    if (shown.length < sorted.length)
      this.more.append(`The first ${count(shown.length)} of ${plural(sorted.length, "row")}. `,
        h("button", { onclick: () => { this.all = true; this.draw(); } }, "Show all"));
  }

  line(row) {
    const cells = COLUMNS.map(([, , words, text], column) => {
      if (column) return h("td", { class: text ? "left" : "" }, words(row));
      return h("th", { scope: "row", class: "left" }, this.chip(row),
        h("button", { onclick: () => this.on.open(row.site) }, row.site));
    });
    cells[0] = h("td", { class: "left" }, ...cells[0].childNodes);
    if (this.several) cells.splice(1, 0, h("td", { class: "left" }, row.run));
    return h("tr", {}, ...cells);
  }

  chip(row) {
    const colour = row.now ? ratioPixel(row.now.dead, row.now.judged, true) : paints.unseen;
    const chip = h("span", { class: "chip", "aria-hidden": "true" });
    chip.style.background = `rgb(${colour & 255} ${(colour >> 8) & 255} ${(colour >> 16) & 255})`;
    return chip;
  }
}

// ── advice ──────────────────────────────────────────────────────────────────────────────

/** [severity, one, several, a shape that tells it without colours] */
const GRADES = [["error", "error", "errors", "■"], ["warning", "warning", "warnings", "▲"],
  ["info", "worth knowing", "worth knowing", "○"]];

const FINDINGS = 100;

const MISSING_ADVICE = "No advice was asked for in this run. Watch(…, advice=True) and "
  + "DeadWatch(advice=True) give it; deadwatch scan does before training.";

/** What was looked at, where nothing was found. */
function lookedAt(doc) {
  if (!doc.asked) return MISSING_ADVICE;
  return `Nothing was found that lets units die. Looked at were ${plural(doc.sites, "layer")} with `
    + `${plural(doc.judged, "judged unit")} in the last of ${plural(doc.windows, "window")}.`;
}

class Advice {
  constructor(on) {
    this.on = on;
    this.hidden = new Set(); // severities that are not shown
    this.all = false;
    this.entries = [];
    this.filters = h("span", { class: "dw-two", role: "group", "aria-label": "Severities shown" });
    this.list = h("ul", { class: "dw-findings", "aria-label": "Findings" });
    this.more = h("p", { class: "dw-muted" });
    this.about = h("div", { class: "dw-muted" });
    this.root = h("section", { hidden: true, "aria-label": "Advice" },
      h("div", { class: "dw-bar" }, this.filters), this.about, this.list, this.more);
  }

  /** `docs`: one a run, as [run, document, names of its layers]. */
  set(docs) {
    const several = docs.length > 1;
    const entries = docs.flatMap(([run, doc, sites]) =>
      doc.findings.map((finding) => ({ finding, run: several ? run : null, sites })));
    const grade = ({ finding }) => GRADES.findIndex(([severity]) => severity === finding.severity);
    this.entries = entries.sort((a, b) => grade(a) - grade(b)
      || a.finding.id.localeCompare(b.finding.id));
    this.empty = docs.filter(([, doc]) => !doc.findings.length)
      .map(([run, doc]) => `${several ? `${run}: ` : ""}${lookedAt(doc)}`);
    this.draw();
  }

  shown() {
    return this.entries.filter(({ finding }) => !this.hidden.has(finding.severity));
  }

  draw() {
    const focused = document.activeElement?.dataset?.key;
    const found = this.shown();
    const few = this.all ? found : found.slice(0, FINDINGS);
    this.filters.replaceChildren(...GRADES.flatMap((grade) => this.filter(grade)));
    this.about.replaceChildren(...this.empty.map((line) => h("p", {}, line)));
    this.list.replaceChildren(...few.map((entry, at) => this.item(entry, at)));
    this.more.replaceChildren();
    if (found.length < this.entries.length)
      this.more.append(`${count(found.length)} of ${plural(this.entries.length, "finding")}. `);
    if (few.length < found.length)
      this.more.append(`The first ${count(few.length)} are shown. `,
        h("button", { onclick: () => { this.all = true; this.draw(); } }, "Show all"));
    if (focused && !document.activeElement?.dataset?.key)
      [...this.root.querySelectorAll("[data-key]")].find((b) => b.dataset.key === focused)?.focus();
  }

  filter([severity, one, several, shape]) {
    const there = this.entries.filter(({ finding }) => finding.severity === severity).length;
    if (!there) return [];
    const words = `${shape} ${count(there)} ${there === 1 ? one : several}`;
    return [h("button", { "data-severity": severity, "data-key": severity,
      "aria-pressed": String(!this.hidden.has(severity)), onclick: () => {
        if (!this.hidden.delete(severity)) this.hidden.add(severity);
        this.draw();
        this.on.said(`${plural(this.shown().length, "finding")} shown.`);
      } }, words)];
  }

  item({ finding, run, sites }, at) {
    const [, word, , shape] = GRADES.find(([severity]) => severity === finding.severity);
    const since = `since window ${finding.window}`;
    const numbers = Object.entries(finding.numbers).map(([name, value]) =>
      `${name.replaceAll("_", " ")} ${value === null ? "not finite" : figure(value)}`);
    const reason = [finding.reason, finding.source && `(${finding.source})`].filter(Boolean);
    return h("li", { "data-severity": finding.severity },
      h("h3", {}, `${shape} ${finding.id} ${word}: ${finding.title}`),
      h("p", {}, finding.message),
      finding.where.length ? h("p", { class: "dw-where" }, h("span", { class: "dw-muted" }, "at"),
        ...finding.where.map((name, n) => this.place(name, sites, at, n))) : null,
      h("p", { class: "dw-muted" }, [run, since, ...numbers].filter(Boolean).join(" · ")),
      reason.length ? h("p", {}, reason.join(" ")) : null,
      finding.code ? this.fix(finding.code, at) : null);
  }

  place(name, sites, at, n) {
    if (!sites.has(name)) return h("span", { class: "dw-muted" }, name);
    return h("button", { "data-key": `${at} ${n}`, onclick: () => this.on.open(name) }, name);
  }

  /** The fix, and a button that copies exactly what is shown: nothing invisible goes along. */
  fix(code, at) {
    const text = code.split("\n").map(visible).join("\n");
    const pre = h("pre", { tabindex: "0", "aria-label": "Fix" });
    pre.textContent = text;
    const copy = async () => this.on.said(await copied(pre, text));
    return h("div", { class: "dw-fix" }, pre,
      h("button", { "data-key": `copy ${at}`, onclick: copy }, "Copy"));
  }
}

/** Copy a text, or select it where the page may not: over plain HTTP from another machine. */
async function copied(element, text) {
  try {
    await navigator.clipboard.writeText(text);
    return "Copied.";
  } catch {
    getSelection().selectAllChildren(element);
    const done = document.execCommand("copy");
    return done ? "Copied." : "Selected; the copy keys of the browser copy it.";
  }
}

// ── everything together ─────────────────────────────────────────────────────────────────

const SECONDS = 10;
const TOLD = 200;

class App {
  constructor(root, source) {
    this.source = source;
    this.runs = [];
    this.stamps = {};
    this.shown = [];
    this.docs = new Map(); // run → {stamp, overview, table, findings}
    this.site = null; // the layer whose units are shown
    this.advised = false; // whether advice is shown, or will be when the layer is closed
    this.unitDocs = new Map(); // run → document
    this.zooms = { layers: null, units: null };
    this.pins = [];
    this.filter = "";
    this.order = "flow";
    this.every = SECONDS * 1000;
    this.build(root);
    followTheme(this.root, () => this.draw());
  }

  build(root) {
    const actions = {
      tip: (told, where) => this.tip(told, where),
      said: (words) => (this.said.textContent = visible(words)),
    };
    this.layers = new Picture("Layers by windows, coloured by the share of dead units", {
      ...actions,
      open: ({ row }) => this.open(this.layers.model.rows[row].key, true),
      zoom: (a, b) => this.zoomLayers(a, b), wider: () => this.zoomLayers(null),
      back: () => this.zoomLayers(null),
    });
    this.units = new Picture("Units of a layer by windows, coloured by state", {
      ...actions,
      open: (cell) => this.pick(cell),
      zoom: (a, b) => this.zoomRows(a, b), wider: () => this.widen(), back: () => this.back(),
    });
    this.pinActions = { ...actions, unpin: (unit) => this.unpin(unit), back: () => this.back() };
    this.table = new Table({ open: (site) => this.open(site, true) });
    this.advice = new Advice({ ...actions, open: (site) => this.open(site, true) });
    this.said = h("div", { class: "dw-said", "aria-live": "polite", role: "status" });
    this.tooltip = h("div", { class: "dw-tip", role: "tooltip", hidden: true });
    this.status = h("p", { class: "dw-status", role: "alert" });
    this.runBox = h("div", { class: "dw-runs", role: "group", "aria-label": "Runs" });
    this.root = h("main", { class: "dw" },
      h("div", { class: "dw-bar" }, this.viewsBar(), this.runBox), this.status,
      this.layersView(), this.unitsView(), this.advice.root, this.tooltip, this.said);
    const style = h("style");
    style.textContent = STYLE;
    root.append(style, this.root);
    root.style.margin = "0";
    document.documentElement.lang ||= "en";
    window.addEventListener("resize", () => this.draw());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.back());
  }

  viewsBar() {
    const view = (name) => h("button", { "data-view": name, onclick: () =>
      this.turnTo(name === "advice") });
    this.views = [view("layers"), view("advice")];
    return h("span", { class: "dw-two", role: "group", "aria-label": "Views" }, ...this.views);
  }

  layersView() {
    this.filterBox = h("input", { type: "search", placeholder: "Filter layers by name",
      "aria-label": "Filter layers by name", oninput: () => {
        this.filter = this.filterBox.value;
        this.zooms.layers = null;
        this.draw();
      } });
    const choice = (order, words) => h("button", { "data-order": order, onclick: () => {
      this.order = order;
      this.draw();
    } }, words);
    this.orders = h("span", { class: "dw-two", role: "group", "aria-label": "Order of the layers" },
      choice("flow", "As the network flows"), choice("severity", "Worst first"));
    this.allLayers = h("button", { onclick: () => this.zoomLayers(null) }, "Show all layers");
    this.matching = h("span", { class: "dw-muted" });
    this.layersKey = h("div", { class: "dw-legend", "aria-label": "Legend" });
    this.notes = h("div");
    this.layersBox = h("section", { "aria-label": "Layers by windows" },
      h("div", { class: "dw-bar" }, this.filterBox, this.orders, this.allLayers, this.matching),
      this.layersKey, this.layers.root,
      h("p", { class: "dw-hint" }, "Click a layer for its units; drag over rows to zoom. Keys: "
        + "arrows move, Enter opens, + and − zoom, Escape goes back."),
      this.table.root, this.notes);
    return this.layersBox;
  }

  unitsView() {
    this.title = h("h2");
    this.about = h("p", { class: "dw-muted" });
    this.allUnits = h("button", { onclick: () => this.zoomUnits(null) }, "Show all units");
    this.unitsKey = h("div", { class: "dw-legend", "aria-label": "Legend" });
    this.pinBox = h("div");
    this.closer = h("button", { onclick: () => this.close() });
    this.unitsBox = h("section", { hidden: true, "aria-label": "Units by windows" },
      h("div", { class: "dw-bar" }, this.closer, this.title, this.allUnits), this.about,
      this.unitsKey, this.units.root,
      h("p", { class: "dw-hint" }, "Click a unit to pin its pre-activation below; drag over rows to "
        + "zoom. Keys: arrows move, Enter pins, + and − zoom, Escape goes back."),
      this.pinBox);
    return this.unitsBox;
  }

  // ── data ──

  async start() {
    await this.refresh();
    if (this.source.live) this.wait();
  }

  wait() {
    clearTimeout(this.timer);
    this.timer = setTimeout(async () => {
      if (document.visibilityState === "visible") await this.refresh();
      this.wait();
    }, this.every);
  }

  /** Ask for what is new; what is shown stays until that is there. */
  async refresh() {
    await this.guarded(async () => {
      const told = await this.source.runs();
      const { runs, stamps = {} } = Array.isArray(told) ? { runs: told } : told;
      this.stamps = stamps;
      if (runs.join("\n") !== this.runs.join("\n") || !this.shown.length) {
        this.runs = runs;
        const left = this.shown.length;
        this.shown = this.shown.filter((run) => runs.includes(run));
        if (this.shown.length && this.shown.length < left) this.draw();
        if (!this.shown.length) this.shown = runs.length <= 2 ? [...runs] : runs.slice(0, 1);
        this.drawRuns();
      }
      await this.load();
    });
  }

  async guarded(work) {
    try {
      await work();
      this.status.textContent = this.runs.length ? "" : NOTHING;
      this.since = new Date();
    } catch (error) {
      const since = this.since ? ` What is shown is from ${this.since.toLocaleTimeString()}.` : "";
      this.status.textContent = visible(`${error.message}${since}`);
    }
  }

  /** Everything that the view needs and that is not there, or older than the run. */
  async load() {
    const stale = this.shown.filter((run) => {
      const held = this.docs.get(run);
      return !held || (this.source.live && held.stamp !== JSON.stringify(this.stamps[run]));
    });
    await Promise.all(stale.map(async (run) => {
      const stamp = JSON.stringify(this.stamps[run]);
      const overview = await this.source.overview(run);
      const { table, findings } = this.docs.get(run) ?? {};
      this.docs.set(run, { stamp, overview, table, findings });
    }));
    if (this.site && (stale.length || this.shown.some((run) => !this.unitDocs.has(run))))
      await this.loadUnits();
    if (stale.length) this.draw();
    await Promise.all(stale.map(async (run) => {
      const doc = this.docs.get(run);
      [doc.table, doc.findings] =
        await Promise.all([this.source.table(run), this.source.findings(run)]);
    }));
    if (!stale.length) return;
    this.drawTable();
    this.drawAdvice();
  }

  loadUnits() {
    this.asked = (this.asked ?? 0) + 1;
    return (this.loading = this.unitsOf(this.site, this.asked));
  }

  async unitsOf(site, asked) {
    const found = new Map();
    const problems = [];
    for (const run of this.shown) {
      const known = this.docs.get(run)?.overview.sites.find(({ name }) => name === site);
      if (!known) continue;
      try {
        const zoom = (this.zooms.units ?? []).map((end) => Math.min(end, known.units));
        if (zoom.length && zoom[0] >= zoom[1]) continue;
        found.set(run, await this.source.units(run, site, ...zoom));
      } catch (error) {
        problems.push(`${run}: ${error.message}`);
      }
    }
    if (asked !== this.asked) return this.loading; // what was asked for since is what is wanted
    if (site !== this.site) return undefined;
    [this.unitDocs, this.unitProblems] = [found, problems];
    await Promise.all(this.pins.map((pin) => this.loadPin(pin)));
    return undefined;
  }

  async loadPin(pin) {
    pin.problems = [];
    const docs = await Promise.all([...this.unitDocs.keys()].map(async (run) => {
      if (pin.unit >= this.unitDocs.get(run).units) return null;
      try {
        return await this.source.unit(run, this.site, pin.unit);
      } catch (error) {
        pin.problems.push(error.message);
        return null;
      }
    }));
    pin.set(docs, this.units, pin.problems);
  }

  // ── actions ──

  async choose(runs) {
    this.shown = this.runs.filter((run) => runs.includes(run));
    this.drawRuns();
    await this.guarded(() => this.load());
    if (this.site) await this.loadUnits();
    this.draw();
    this.drawTable();
  }

  /** Show the advice, or the layers. */
  turnTo(advised) {
    [this.advised, this.site] = [advised, null];
    this.tip(null);
    this.draw();
  }

  async open(site, focus) {
    [this.site, this.pins, this.unitDocs, this.zooms.units] = [site, [], new Map(), null];
    this.unitProblems = [];
    this.tip(null);
    await this.guarded(() => this.loadUnits());
    if (this.site !== site) return;
    this.units.model = null;
    this.draw();
    scrollTo(0, 0);
    if (focus) this.units.box.focus();
  }

  close() {
    const { site } = this;
    this.site = null;
    this.tip(null);
    this.draw();
    if (this.advised) return void this.views[1].focus();
    const row = this.layers.model?.rows.findIndex(({ key }) => key === site);
    if (row >= 0) this.layers.cursor.row = row;
    this.layers.box.focus();
  }

  back() {
    if (this.site && this.zooms.units) this.zoomUnits(null);
    else if (this.site) this.close();
    else if (this.advised) {
      this.turnTo(false);
      this.views[0].focus();
    }
  }

  zoomLayers(a, b) {
    const rows = this.layers.model?.rows;
    this.zooms.layers = a === null || !rows ? null : [rows[a]?.key, rows[b - 1]?.key];
    this.draw();
  }

  /** Rows of the picture, as units. */
  zoomRows(a, b) {
    if (a === null) return this.zoomUnits(null);
    const { rows } = this.units.model;
    return this.zoomUnits([rows[a].units[0], rows[Math.min(b, rows.length) - 1].units[1]]);
  }

  widen() {
    if (!this.zooms.units) return undefined;
    const all = Math.max(...[...this.unitDocs.values()].map((doc) => doc.units));
    const [a, b] = this.zooms.units;
    const more = Math.ceil((b - a) / 2);
    const wider = [Math.max(0, a - more), Math.min(all, b + more)];
    return this.zoomUnits(wider[0] === 0 && wider[1] === all ? null : wider);
  }

  async zoomUnits(range) {
    this.zooms.units = range;
    await this.guarded(() => this.loadUnits());
    this.draw();
  }

  /** A row of several units is opened; a single one is pinned, or no longer. */
  async pick({ row }) {
    const [first, last] = this.units.model.rows[row].units;
    if (last - first > 1) {
      if (this.source.live) return this.zoomUnits([first, last]);
      this.status.textContent = "This file holds no single units of this layer.";
      return undefined;
    }
    if (this.pins.some((pin) => pin.unit === first)) return this.unpin(first);
    const pin = new Pin(first, this.pinActions);
    this.pins.push(pin);
    this.pinBox.append(pin.root);
    this.drawUnits();
    await this.loadPin(pin);
    pin.root.scrollIntoView({ block: "nearest" });
    this.said.textContent = `Unit ${first} is pinned below.`;
    return undefined;
  }

  unpin(unit) {
    this.pins = this.pins.filter((pin) => pin.unit !== unit);
    this.drawUnits();
    this.said.textContent = `Unit ${unit} is no longer pinned.`;
  }

  tip(told, where) {
    this.tooltip.hidden = !told;
    if (!told) return;
    this.tooltip.replaceChildren(h("b", {}, told.title),
      ...told.lines.map((line) => h("div", {}, line)));
    if (!where) return;
    const { offsetWidth, offsetHeight } = this.tooltip;
    const left = where.x + 14 + offsetWidth > innerWidth ? where.x - 14 - offsetWidth : where.x + 14;
    const top = Math.min(where.y + 14, innerHeight - offsetHeight - 6);
    this.tooltip.style.left = `${Math.max(4, left)}px`;
    this.tooltip.style.top = `${Math.max(4, top)}px`;
  }

  // ── drawing ──

  drawRuns() {
    const entries = this.runs.map((run) => {
      const on = this.shown.includes(run);
      const box = h("input", { type: "checkbox", checked: on, "data-run": run,
        "aria-label": `Show ${run} beside the others`, onchange: () => {
          const others = this.shown.filter((name) => name !== run);
          const chosen = box.checked ? [...others, run] : others;
          if (chosen.length) this.choose(chosen);
          else box.checked = true; // something is always shown
        } });
      return h("span", { class: on ? "dw-run on" : "dw-run" }, box,
        h("button", { title: `Show only ${run}`, onclick: () => this.choose([run]) }, run));
    });
    const focused = document.activeElement?.dataset?.run;
    this.runBox.replaceChildren(...entries);
    if (focused !== undefined)
      [...this.runBox.querySelectorAll("input")].find((b) => b.dataset.run === focused)?.focus();
  }

  ready() {
    return this.shown.filter((run) => this.docs.has(run));
  }

  draw() {
    if (!this.layers || !this.ready().length) return;
    this.layersBox.hidden = Boolean(this.site) || this.advised;
    this.unitsBox.hidden = !this.site;
    this.advice.root.hidden = Boolean(this.site) || !this.advised;
    this.drawAdvice();
    if (this.site) this.drawUnits();
    else if (!this.advised) this.drawLayers();
    if (this.drawn) return;
    this.drawn = true;
    requestAnimationFrame(() => setTimeout(() => performance.mark("deadwatch:picture")));
  }

  drawLayers() {
    const runs = this.ready();
    const docs = runs.map((run) => this.docs.get(run).overview);
    const all = siteNames(docs, this.order, this.filter);
    let names = all;
    const ends = this.zooms.layers?.map((name) => all.indexOf(name));
    if (ends && ends[0] >= 0 && ends[1] >= ends[0]) names = all.slice(ends[0], ends[1] + 1);
    this.allLayers.hidden = names.length === all.length;
    const total = new Set(docs.flatMap((doc) => doc.sites.map((site) => site.name))).size;
    this.matching.textContent = names.length < total
      ? `${count(names.length)} of ${plural(total, "layer")}` : plural(total, "layer");
    for (const button of this.orders.children)
      button.setAttribute("aria-pressed", String(button.dataset.order === this.order));
    this.layersKey.replaceChildren(...layersLegend());
    this.layers.set({
      rows: names.map((name) => ({ key: name, label: name })), domain: domainOf(docs), highest: 26,
      plots: runs.map((run, i) => layersPlot(run, docs[i], names)) });
    if (this.layers.each < 1)
      this.matching.textContent += "; a pixel holds several layers and shows the worst";
    if (this.layers.crowded)
      this.matching.textContent += "; zoom in to see which layers were treated";
    this.drawTable();
    this.drawNotes(runs, docs);
  }

  /** The advice if it is shown; how much of it there is always is. */
  drawAdvice() {
    const docs = this.ready().map((run) => [run, this.docs.get(run).findings])
      .filter(([, doc]) => doc);
    const harm = docs.flatMap(([, doc]) => doc.findings)
      .filter(({ severity }) => severity !== "info").length;
    const names = ["Layers", harm ? `Advice (${count(harm)})` : "Advice"];
    this.closer.textContent = this.advised ? "← Advice" : "← All layers";
    this.views.forEach((button, at) => {
      button.textContent = names[at];
      button.setAttribute("aria-pressed", String(Boolean(at) === this.advised));
    });
    if (this.site || !this.advised) return;
    this.advice.set(docs.map(([run, doc]) =>
      [run, doc, new Set(this.docs.get(run).overview.sites.map(({ name }) => name))]));
  }

  drawTable() {
    if (this.site || this.advised) return;
    const wanted = this.filter.toLowerCase();
    const rows = this.ready().flatMap((run) =>
      (this.docs.get(run).table?.rows ?? []).map((row, order) => ({ ...row, run, order })));
    this.table.set(rows.filter((row) => row.site.toLowerCase().includes(wanted)),
      this.shown.length > 1, this.ready().map((run) => this.docs.get(run).table?.results));
  }

  drawNotes(runs, docs) {
    const open = new Set([...this.notes.querySelectorAll("details[open]")].map((d) => d.dataset.run));
    this.notes.replaceChildren(...runs.flatMap((run, i) => {
      const { notes, outcomes } = docs[i];
      if (!notes.length && !outcomes.length) return [];
      const lines = outcomes.map((o) => `${o.remedy}: ${plural(o.units, "unit")} treated, `
        + `${count(o.revived)} revived, ${count(o.relapsed)} relapsed, ${count(o.still_dead)} still `
        + `dead, ${count(o.open)} open, ${plural(o.undone, "treatment")} undone`);
      lines.push(...notes.slice(-TOLD).map((note) => `window ${note.window}: ${note.text}`));
      if (notes.length > TOLD)
        lines.push(`The last ${TOLD} of ${count(notes.length)} notes are shown.`);
      const name = runs.length > 1 ? ` in ${run}` : "";
      return [h("details", { "data-run": run, open: open.has(run) },
        h("summary", {}, `${summary(outcomes, notes)}${name}`),
        h("ul", {}, ...lines.map((line) => h("li", {}, line))))];
    }));
  }

  drawUnits() {
    const runs = [...this.unitDocs.keys()].filter((run) => this.shown.includes(run));
    const docs = runs.map((run) => this.unitDocs.get(run));
    const known = this.ready().map((run) =>
      this.docs.get(run).overview.sites.find(({ name }) => name === this.site)).find(Boolean);
    this.title.textContent = visible(this.site);
    const from = known && Array.isArray(known.producers) ? ` · made by ${known.producers.join(", ")}`
      : "";
    this.about.textContent = visible([
      known ? `${known.activation}${from}` : "", ...(this.unitProblems ?? [])].join(" "));
    this.allUnits.hidden = !this.zooms.units;
    this.unitsKey.replaceChildren(...unitsLegend(docs.some((doc) => doc.dead)));
    const widest = docs.reduce((a, b) => (a && a.units >= b.units ? a : b), null);
    const range = this.zooms.units ?? [0, Infinity];
    const rows = widest ? rowsBetween(widest, range).map((row) => widest.rows[row]) : [];
    const keys = rows.map(([a, b]) => `${a}-${b}`);
    this.units.set({
      rows: rows.map(([a, b], i) =>
        ({ key: keys[i], label: b - a > 1 ? `${a}–${b - 1}` : String(a), units: [a, b] })),
      domain: domainOf(docs), highest: 18, unit: "unit", chosen: this.chosen(rows),
      plots: runs.map((run, i) => unitsPlot(run, docs[i], keys)) });
    this.drawPins();
  }

  chosen(rows) {
    const pinned = this.pins.map((pin) => rows.findIndex(([a, b]) => a <= pin.unit && pin.unit < b));
    return new Set(pinned.filter((row) => row >= 0));
  }

  drawPins() {
    const there = [...this.pinBox.children];
    const wanted = this.pins.map((pin) => pin.root);
    if (there.length !== wanted.length || there.some((box, i) => box !== wanted[i]))
      this.pinBox.replaceChildren(...wanted);
    for (const pin of this.pins) pin.draw();
  }

  /** What is shown, as plain values: for tests, and for whoever wants to read it off. */
  handle() {
    const plot = (picture, run) => picture.model.plots.findIndex((entry) => entry.key === run);
    const column = (picture, run, window) =>
      columnOf(picture.model.plots[plot(picture, run)].columns, window);
    const shared = (picture) => ({
      rows: () => picture.model?.rows.map((row) => row.label) ?? [],
      runs: () => picture.model?.plots.map((entry) => entry.key) ?? [],
      domain: () => picture.model?.domain,
      cursor: () => ({ ...picture.cursor }),
      point: (run, row, window) =>
        picture.point(plot(picture, run), row, column(picture, run, window)),
      pixel: (run, row, window) => {
        const at = column(picture, run, window);
        const { columns, paint } = picture.model.plots[plot(picture, run)];
        return paint[row * columns.length + at];
      },
    });
    return {
      app: this,
      view: () => (this.site ? "units" : this.advised ? "advice" : "layers"),
      findings: () => this.advice.shown().map(({ finding }) => finding),
      pins: () => this.pins.map((pin) => ({ unit: pin.unit, docs: pin.docs })),
      poll: (milliseconds) => {
        this.every = milliseconds;
        this.wait();
      },
      layers: { ...shared(this.layers), cell: (run, site, window) => {
        const doc = this.docs.get(run).overview;
        const row = doc.sites.findIndex(({ name }) => name === site);
        return layerCell(doc, row, columnOf(doc.columns, window));
      } },
      units: { ...shared(this.units), cell: (run, unit, window) => {
        const doc = this.unitDocs.get(run);
        const row = doc.rows.findIndex(([a, b]) => a <= unit && unit < b);
        const cell = unitCell(doc, row, columnOf(doc.columns, window));
        return { ...cell, name: STATES[cell.state], became: FATES[cell.fate] };
      } },
    };
  }
}

const NOTHING =
  "No run here has records of deadwatch's. Runs that deadwatch writes appear by themselves: see "
  + "DeadWatch for Lightning and TensorBoardView for plain loops.";

function summary(outcomes, notes) {
  const told = outcomes.length ? "What came of the treatments" : "";
  if (!notes.length) return told;
  return told ? `${told}, and ${plural(notes.length, "note")}` : plural(notes.length, "note");
}

/** Draw everything a source has into an element. */
export function show(root, source) {
  const app = new App(root, source);
  window.deadwatch = app.handle();
  window.deadwatch.started = app.start();
  return window.deadwatch;
}
