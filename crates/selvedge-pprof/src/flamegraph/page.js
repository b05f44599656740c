"use strict";
(() => {
  const ROW = 18;
  const MIN_WIDTH = 0.5;
  const LABEL_MIN_WIDTH = 22;
  const PADDING = 4;
  const FONT = '12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
  const PSEUDO = 2, GROUP = 3, INLINED = 1; // as in frames.rs

  const element = (id) => document.getElementById(id);
  const profile = JSON.parse(element("profile").textContent);
  const { frames } = profile;
  const frameName = (frame) => frames.strings[frames.name[frame]];
  const frameFile = (frame) => frames.strings[frames.file[frame]];
  const framePackage = (frame) => frames.strings[frames.package[frame]];

  // ---- Trees -------------------------------------------------------------------------------------------------------

  /** Adds to the columns of a tree (in preorder) what can be computed from them. */
  function indexed(tree) {
    const count = tree.depth.length;
    tree.parent = new Int32Array(count);
    tree.end = new Int32Array(count).fill(count); // one past the last descendant
    tree.start = new Float64Array(count); // values to the left, in the whole graph
    tree.self = new Float64Array(count);
    tree.deepest = new Int32Array(count); // depth of the deepest descendant
    const ancestors = [];
    const used = new Float64Array(count);
    for (let node = 0; node < count; node++) {
      while (ancestors.length > tree.depth[node]) tree.end[ancestors.pop()] = node;
      const parent = ancestors.length ? ancestors[ancestors.length - 1] : -1;
      tree.parent[node] = parent;
      tree.self[node] = tree.value[node];
      if (parent >= 0) {
        tree.start[node] = tree.start[parent] + used[parent];
        used[parent] += tree.value[node];
        tree.self[parent] -= tree.value[node];
      }
      ancestors.push(node);
    }
    for (let node = count - 1; node >= 0; node--) {
      tree.deepest[node] = Math.max(tree.deepest[node], tree.depth[node]);
      const parent = tree.parent[node];
      if (parent >= 0) tree.deepest[parent] = Math.max(tree.deepest[parent], tree.deepest[node]);
    }
    return tree;
  }

  // ---- Numbers -----------------------------------------------------------------------------------------------------

  const SCALES = {
    nanoseconds: [[3600e9, "h"], [1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]],
    bytes: [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]],
  };
  const TO_NANOSECONDS = { seconds: 1e9, milliseconds: 1e6, microseconds: 1e3, nanoseconds: 1 };

  function quantity(value, unit) {
    const time = TO_NANOSECONDS[unit];
    const scale = time ? SCALES.nanoseconds : SCALES[unit];
    if (!scale) {
      const plain = unit === "" || unit === "count";
      return value.toLocaleString("en") + (plain ? "" : " " + unit);
    }
    const base = value * (time ?? 1);
    const [factor, name] = scale.find(([factor]) => base >= factor) ?? scale[scale.length - 1];
    const scaled = base / factor;
    const digits = factor === 1 || scaled >= 1000 ? 0 : scaled >= 100 ? 1 : scaled >= 10 ? 2 : 3;
    return scaled.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }) + " " + name;
  }

  const amount = (value) => {
    const text = quantity(value, profile.unit);
    return profile.unit === "count" ? `${text} ${profile.kind}` : text;
  };

  function percentage(part, whole) {
    if (whole === 0) return "0%";
    const percent = (part / whole) * 100;
    if (percent > 0 && percent < 0.01) return "<0.01%";
    if (part === whole) return "100%";
    return Math.min(percent, 99.99).toFixed(2) + "%";
  }

  // ---- Names -------------------------------------------------------------------------------------------------------

  const BRACKETS = { "<": 1, "(": 1, "[": 1, "{": 1, ">": -1, ")": -1, "]": -1, "}": -1 };

  /** The last element of a name with `::`, without what is in brackets taken apart. */
  function lastElement(name) {
    if (!name.includes("::") || name.includes("operator")) return name;
    const starts = [];
    let depth = 0;
    for (let at = 0; at < name.length; at++) {
      if (name[at] === ">" && name[at - 1] === "-") continue;
      depth += BRACKETS[name[at]] ?? 0;
      if (depth === 0 && name.startsWith("::", at) && name[at + 2] !== "<") starts.push(at + 2);
    }
    // A closure alone says nothing: show whose it is.
    while (starts.length > 1 && name[starts[starts.length - 1]] === "{") starts.pop();
    return starts.length ? name.slice(starts[starts.length - 1]) : name;
  }

  const labelCache = [];

  /** The ways to write a frame's name, longest first, each with its width. */
  function labels(frame) {
    return (labelCache[frame] ??= [...new Set([frameName(frame), lastElement(frameName(frame))])]
      .map((text) => ({ text, width: context.measureText(text).width })));
  }

  /** What of a frame's name fits in `width` pixels. */
  function fitting(frame, width) {
    const ways = labels(frame);
    const whole = ways.find((label) => label.width <= width);
    if (whole) return whole.text;
    const { text, width: full } = ways[ways.length - 1];
    const characters = [...text];
    let count = Math.floor((characters.length * width) / full);
    for (; count > 0; count--) {
      const cut = characters.slice(0, count).join("") + "…";
      if (context.measureText(cut).width <= width) return cut;
    }
    return "";
  }

  function place(node) {
    const file = frameFile(tree.frame[node]);
    return file && tree.line[node] ? `${file}:${tree.line[node]}` : file;
  }

  // ---- Colours -----------------------------------------------------------------------------------------------------

  // Paul Tol's "light" scheme: distinct in all kinds of colour blindness, and under dark text.
  const SAFE = ["#77aadd", "#ee8866", "#eedd88", "#ffaabb", "#99ddff", "#44bb99", "#bbcc33", "#aaaa00"];
  const THEMES = {
    light: {
      ground: "#ffffff", text: "#17181b", grey: "#d9dbde", group: "#c3cbd6", hover: "#17181b",
      found: "#a3195b", foundText: "#ffffff", tone: (hue, shade) => `hsl(${hue} 55% ${81 - shade}%)`,
    },
    dark: {
      ground: "#17181b", text: "#f0f1f3", grey: "#4a4d53", group: "#3f4a5a", hover: "#ffffff",
      found: "#ff9bcb", foundText: "#17181b", tone: (hue, shade) => `hsl(${hue} 30% ${36 - shade}%)`,
    },
  };
  const HUES = [212, 28, 145, 266, 52, 184, 340, 92, 236, 8, 166, 306];
  const SAFE_TEXT = "#17181b";
  const SAFE_GREY = "#dddddd";
  const darkPreferred = matchMedia("(prefers-color-scheme: dark)");
  let theme, slots, colours = [], safe = false;

  function hash(text) {
    let value = 2166136261;
    for (let at = 0; at < text.length; at++) value = Math.imul(value ^ text.charCodeAt(at), 16777619);
    return (value ^ (value >>> 15)) >>> 0;
  }

  /** What each package has of its own, largest first. */
  function selfByPackage() {
    const sums = new Map();
    for (let node = 0; node < tree.frame.length; node++) {
      const frame = tree.frame[node];
      if (frames.kind[frame] === GROUP) continue;
      const name = frames.kind[frame] === PSEUDO ? null : framePackage(frame);
      sums.set(name, (sums.get(name) ?? 0) + tree.self[node]);
    }
    return [...sums].sort((a, b) => b[1] - a[1]);
  }

  /** Gives each package one of `count` colours: the same in most profiles, and the largest packages different ones. */
  function assigned(count) {
    const slots = new Map();
    const taken = new Set();
    for (const [name] of selfByPackage()) {
      if (name === null) continue;
      let slot = hash(name) % count;
      if (taken.size < count) {
        while (taken.has(slot)) slot = (slot + 1) % count;
        taken.add(slot);
      }
      slots.set(name, slot);
    }
    return slots;
  }

  function packageColour(name, shade = 0) {
    if (name === null) return safe ? SAFE_GREY : theme.grey;
    return safe ? SAFE[slots.get(name)] : theme.tone(HUES[slots.get(name)], shade);
  }

  function colour(frame) {
    return (colours[frame] ??= frames.kind[frame] === GROUP ? theme.group
      : frames.kind[frame] === PSEUDO ? packageColour(null)
      : packageColour(framePackage(frame), hash(frameName(frame)) % 7));
  }

  function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : darkPreferred.matches;
  }

  function recolour() {
    theme = THEMES[isDark() ? "dark" : "light"];
    colours = [];
    slots = assigned(safe ? SAFE.length : HUES.length);
    element("theme").textContent = isDark() ? "Light" : "Dark";
    element("palette").setAttribute("aria-pressed", String(safe));
    showPackages();
    requestDraw();
  }

  // A page opened from a file may have no storage.
  function remember(key, value) {
    try { localStorage.setItem("selvedge." + key, value); } catch { /* then it is forgotten */ }
  }
  function remembered(key) {
    try { return localStorage.getItem("selvedge." + key); } catch { return null; }
  }

  // ---- State -------------------------------------------------------------------------------------------------------

  const trees = new Map(profile.trees.map((tree) => [tree.by, tree]));
  const view = element("view"), canvas = element("canvas"), tip = element("tip");
  const context = canvas.getContext("2d");
  let tree; // the one shown
  let zoomed = 0, focused = -1, hovered = -1;
  let found = null; // for each frame, whether the search matches it; null without a search

  function select(by) {
    if (!trees.has(by)) by = "none";
    if (tree?.by === by) return;
    tree = trees.get(by);
    if (!tree.end) indexed(tree);
    zoomed = 0;
    focused = hovered = -1;
    element("by").value = by;
    recolour();
  }

  /** Keeps what is shown in the URL; as a step that "back" undoes if `step`. */
  function keepState(step) {
    const state = new URLSearchParams();
    if (tree.by !== "none") state.set("by", tree.by);
    if (zoomed) state.set("zoom", zoomed);
    if (element("search").value) state.set("search", element("search").value);
    const fragment = "#" + state;
    if (fragment === (location.hash || "#")) return;
    try {
      history[step ? "pushState" : "replaceState"](null, "", fragment);
    } catch {
      location.hash = fragment;
    }
  }

  function restoreState() {
    const state = new URLSearchParams(location.hash.slice(1));
    select(state.get("by") ?? "none");
    const node = Number(state.get("zoom"));
    element("search").value = state.get("search") ?? "";
    search();
    show(Number.isInteger(node) && node > 0 && node < tree.frame.length ? node : 0);
  }

  /** Zooms to `node`, without a trace in the URL. */
  function show(node) {
    zoomed = node;
    hovered = -1;
    if (focused >= 0 && !isShown(focused)) focus(node);
    showPath();
    showMatched();
    layOut();
    reveal(node);
  }

  function zoom(node) {
    if (node === zoomed) return;
    show(node);
    keepState(true);
  }

  // ---- Layout and drawing ------------------------------------------------------------------------------------------

  let width = 0, height = 0, drawRequested = false;

  const isAncestor = (node, of) => node <= of && of < tree.end[node];
  const scale = () => width / tree.value[zoomed];

  function box(node) {
    if (isAncestor(node, zoomed)) return { left: 0, width };
    return { left: (tree.start[node] - tree.start[zoomed]) * scale(), width: tree.value[node] * scale() };
  }
  const isShown = (node) =>
    isAncestor(node, zoomed) || (isAncestor(zoomed, node) && tree.value[node] * scale() >= MIN_WIDTH);

  function layOut() {
    width = view.clientWidth;
    height = view.clientHeight;
    element("space").style.height = Math.max((tree.deepest[zoomed] + 1) * ROW, height) + "px";
    const ratio = devicePixelRatio || 1;
    canvas.style.width = width + "px";
    canvas.style.height = height + "px";
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = FONT;
    context.textBaseline = "middle";
    draw();
  }

  function requestDraw() {
    if (drawRequested) return;
    drawRequested = true;
    requestAnimationFrame(() => { drawRequested = false; draw(); });
  }

  function draw() {
    context.fillStyle = theme.ground;
    context.fillRect(0, 0, width, height);
    if (tree.value[0] === 0) {
      context.fillStyle = theme.text;
      context.fillText("The profile has no samples.", 14, 24);
      return;
    }
    const first = Math.floor(view.scrollTop / ROW), last = Math.floor((view.scrollTop + height) / ROW);
    for (let node = tree.parent[zoomed]; node >= 0; node = tree.parent[node]) {
      if (tree.depth[node] >= first && tree.depth[node] <= last) drawFrame(node, true);
    }
    const perValue = scale();
    for (let node = zoomed; node < tree.end[zoomed];) {
      if (tree.value[node] * perValue < MIN_WIDTH) {
        // Siblings are sorted: those that follow are no wider.
        node = node === zoomed ? tree.end[node] : tree.end[tree.parent[node]];
      } else if (tree.depth[node] > last) {
        node = tree.end[node];
      } else {
        if (tree.depth[node] >= first) drawFrame(node, false);
        node++;
      }
    }
    for (const node of [hovered, focused]) if (node >= 0 && isShown(node)) outline(node, node === focused);
  }

  function drawFrame(node, isCaller) {
    const frame = tree.frame[node];
    const { left, width } = box(node);
    const top = tree.depth[node] * ROW - view.scrollTop;
    const matches = found !== null && found[frame] === 1;
    // An inlined frame touches its caller.
    const over = frames.kind[frame] === INLINED ? 1 : 0;
    context.globalAlpha = found !== null && !matches ? 0.35 : isCaller ? 0.55 : 1;
    context.fillStyle = matches ? theme.found : colour(frame);
    context.fillRect(left, top - over, width > 2 ? width - 1 : width, ROW - 1 + over);
    context.globalAlpha = 1;
    if (width < LABEL_MIN_WIDTH) return;
    const isLight = safe && frames.kind[frame] !== GROUP && !(found !== null && isDark());
    context.fillStyle = matches ? theme.foundText : isLight && !isCaller ? SAFE_TEXT : theme.text;
    if (left < 0) return;
    const text = fitting(frame, width - 1 - 2 * PADDING);
    if (text) context.fillText(text, left + PADDING, top + ROW / 2);
  }

  function outline(node, isFocus) {
    const { left, width } = box(node);
    const top = tree.depth[node] * ROW - view.scrollTop;
    const line = isFocus ? 2 : 1;
    context.strokeStyle = theme.hover;
    context.lineWidth = line;
    context.strokeRect(left + line / 2, top + line / 2, Math.max(width - 1 - line, 1), ROW - 1 - line);
  }

  /** The frame drawn at a point of the canvas; -1 if none. */
  function frameAt(x, y) {
    const row = Math.floor((y + view.scrollTop) / ROW);
    if (x < 0 || x >= width || row < 0 || tree.value[0] === 0) return -1;
    let node = zoomed;
    while (tree.depth[node] > row) node = tree.parent[node];
    const value = tree.start[zoomed] + x / scale();
    while (node >= 0 && tree.depth[node] < row) node = childAt(node, value);
    return node;
  }

  function childAt(node, value) {
    for (let child = node + 1; child < tree.end[node]; child = tree.end[child]) {
      if (tree.value[child] * scale() < MIN_WIDTH) return -1;
      if (value < tree.start[child] + tree.value[child]) return child;
    }
    return -1;
  }

  // ---- Words -------------------------------------------------------------------------------------------------------

  function made(tag, text, className) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  }

  function shares(node) {
    const value = tree.value[node];
    const parts = [`${percentage(value, tree.value[0])} of total`];
    const parent = tree.parent[node];
    if (parent >= 0) parts.push(`${percentage(value, tree.value[parent])} of parent`);
    return parts.join(", ");
  }

  function selfPart(node) {
    const self = tree.self[node];
    return self > 0 && self < tree.value[node] ? `self ${amount(self)}, ${percentage(self, tree.value[0])} of total` : "";
  }

  const isInlined = (node) => frames.kind[tree.frame[node]] === INLINED;

  function describe(node) {
    return [
      frameName(tree.frame[node]) + (isInlined(node) ? " (inlined)" : ""),
      `${amount(tree.value[node])}, ${shares(node)}`,
      selfPart(node),
      place(node),
    ].filter(Boolean).join(" · ");
  }

  function showTip(node, x, y) {
    const frame = tree.frame[node];
    const origin = [framePackage(frame), isInlined(node) ? "inlined" : ""].filter(Boolean).join(", ");
    tip.replaceChildren(
      made("div", frameName(frame), "name"),
      ...[place(node), origin].filter(Boolean).map((text) => made("div", text)),
      made("div", `${amount(tree.value[node])}: ${shares(node)}`, "value"),
      ...[selfPart(node)].filter(Boolean).map((text) => made("div", text)),
    );
    tip.hidden = false;
    const { offsetWidth, offsetHeight } = tip;
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - offsetWidth - 8)) + "px";
    tip.style.top = (y + 18 + offsetHeight < innerHeight ? y + 18 : Math.max(4, y - offsetHeight - 10)) + "px";
  }

  function showTotals() {
    const { total, sampled, kind, unit } = profile;
    const what = unit === "count" ? "" : `${kind}: `;
    const totals = element("totals");
    totals.replaceChildren(what, made("strong", amount(total)), " in all");
    if (sampled !== total) {
      totals.append(", ", made("strong", amount(sampled)),
        ` (${percentage(sampled, total)}) without [unsampled], [signals blocked] and [lost…]`);
    }
  }

  /** The path to the zoomed frame: the root, the nearest callers, the frame. */
  function showPath() {
    const path = [];
    for (let node = zoomed; node > 0; node = tree.parent[node]) path.unshift(node);
    const skipped = Math.max(path.length - 4, 0);
    const entry = (node) => {
      const name = frameName(tree.frame[node]);
      if (node === zoomed) {
        const current = made("span", name);
        current.setAttribute("aria-current", "location");
        current.title = name;
        return current;
      }
      const button = made("button", node === 0 ? name : lastElement(name));
      button.type = "button";
      button.title = name;
      button.addEventListener("click", () => zoom(node));
      return button;
    };
    const entries = [0, ...path.slice(skipped)].map(entry);
    if (skipped) entries.splice(1, 0, made("span", `${skipped} more`));
    element("path").replaceChildren(...entries);
    element("reset").disabled = zoomed === 0;
  }

  function showFacts() {
    const facts = [];
    if (profile.time_nanos) facts.push(["Start", new Date(profile.time_nanos / 1e6).toLocaleString()]);
    if (profile.duration_nanos) facts.push(["Duration", quantity(profile.duration_nanos, "nanoseconds")]);
    if (profile.period) facts.push(["Period", quantity(profile.period, profile.period_unit)]);
    facts.push(["Shown", [profile.kind, profile.unit].filter(Boolean).join(", ")]);
    for (const [name, text] of facts) element("facts").append(made("dt", name), made("dd", text));
    if (URL.canParse(profile.doc_url) && /^https?:$/.test(new URL(profile.doc_url).protocol)) {
      const link = made("a", profile.doc_url);
      link.href = profile.doc_url;
      link.rel = "noreferrer";
      const entry = made("dd");
      entry.append(link);
      element("facts").append(made("dt", "See"), entry);
    }
    element("comments").replaceChildren(...profile.comments.map((comment) => made("li", comment)));
  }

  function showPackages() {
    const rows = selfByPackage().filter(([, value]) => value > 0).slice(0, 12).map(([name, value]) => {
      const row = made("tr");
      const label = made("td");
      const swatch = made("span", undefined, "swatch");
      swatch.style.background = packageColour(name);
      label.append(swatch, name === null ? "[not recorded]" : name || "unknown");
      row.append(label, made("td", amount(value), "number"), made("td", percentage(value, tree.value[0]), "number"));
      return row;
    });
    element("packages").replaceChildren(...rows);
  }

  // ---- Search ------------------------------------------------------------------------------------------------------

  function search() {
    const input = element("search");
    const text = input.value;
    found = null;
    input.setAttribute("aria-invalid", "false");
    if (text) {
      try {
        const pattern = new RegExp(text, /\p{Lu}/u.test(text) ? "" : "i");
        found = Uint8Array.from(frames.name, (_, frame) => Number(pattern.test(frameName(frame))));
      } catch {
        input.setAttribute("aria-invalid", "true");
      }
    }
    showMatched();
    requestDraw();
  }

  /** The value in or below matching frames, each sample counted once. */
  function matchedValue(root) {
    for (let node = root; node >= 0; node = tree.parent[node]) {
      if (found[tree.frame[node]]) return tree.value[root];
    }
    let sum = 0;
    for (let node = root; node < tree.end[root];) {
      if (found[tree.frame[node]]) {
        sum += tree.value[node];
        node = tree.end[node];
      } else {
        node++;
      }
    }
    return sum;
  }

  function showMatched() {
    const output = element("matched");
    if (element("search").getAttribute("aria-invalid") === "true") {
      output.textContent = "not a regular expression";
    } else if (found === null) {
      output.textContent = "";
    } else {
      const value = matchedValue(0);
      let text = `${amount(value)}, ${percentage(value, tree.value[0])} of total`;
      if (zoomed) text += `; ${percentage(matchedValue(zoomed), tree.value[zoomed])} of what is shown`;
      output.textContent = text;
    }
  }

  // ---- Focus -------------------------------------------------------------------------------------------------------

  function focus(node) {
    focused = node;
    element("focused").textContent = node < 0 ? "" : describe(node);
    if (node >= 0) reveal(node);
    requestDraw();
  }

  /** Scrolls so that `node` and its neighbours are in view. */
  function reveal(node) {
    const top = tree.depth[node] * ROW;
    if (top - ROW < view.scrollTop) view.scrollTop = top - ROW;
    else if (top + 2 * ROW > view.scrollTop + height) view.scrollTop = top + 2 * ROW - height;
  }

  function sibling(node, step) {
    const parent = tree.parent[node];
    if (parent < 0) return node;
    let previous = -1;
    for (let child = parent + 1; child < tree.end[parent]; child = tree.end[child]) {
      if (step < 0 && child === node) return previous;
      if (step > 0 && previous === node) return child;
      previous = child;
    }
    return -1;
  }

  const MOVES = {
    ArrowUp: (node) => tree.parent[node],
    ArrowDown: (node) => {
      // On the way down from a caller of the zoomed frame there is one way only.
      for (let child = zoomed; child > node; child = tree.parent[child]) if (tree.parent[child] === node) return child;
      return node + 1 < tree.end[node] ? node + 1 : -1;
    },
    ArrowLeft: (node) => sibling(node, -1),
    ArrowRight: (node) => sibling(node, 1),
    Home: () => zoomed,
  };

  view.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const move = MOVES[event.key];
    if (move) {
      const next = focused < 0 ? zoomed : move(focused);
      if (next >= 0 && isShown(next)) focus(next);
    } else if (event.key === "Enter" && focused >= 0) {
      zoom(focused);
    } else {
      return;
    }
    tip.hidden = true;
    event.preventDefault();
  });

  document.addEventListener("keydown", (event) => {
    const input = element("search");
    const inSearch = document.activeElement === input;
    const wantsSearch = event.key === "/" || ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "f");
    if (wantsSearch && !inSearch) {
      input.focus();
      input.select();
    } else if (event.key === "Escape" && inSearch) {
      view.focus();
    } else if (event.key === "Escape" && zoomed) {
      zoom(0);
    } else if (event.key === "Escape" && input.value) {
      input.value = "";
      search();
      keepState(false);
    } else {
      return;
    }
    event.preventDefault();
  });

  // ---- Pointer and controls ----------------------------------------------------------------------------------------

  function hover(event) {
    const { left, top } = canvas.getBoundingClientRect();
    const node = frameAt(event.clientX - left, event.clientY - top);
    canvas.style.cursor = node < 0 ? "default" : "pointer";
    if (node < 0) tip.hidden = true;
    else showTip(node, event.clientX, event.clientY);
    if (node !== hovered) {
      hovered = node;
      requestDraw();
    }
  }

  function leave() {
    tip.hidden = true;
    hovered = -1;
    requestDraw();
  }

  canvas.addEventListener("pointermove", hover);
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("click", (event) => {
    const { left, top } = canvas.getBoundingClientRect();
    const node = frameAt(event.clientX - left, event.clientY - top);
    if (node < 0) return;
    tip.hidden = true;
    zoom(node);
    focus(node);
  });
  view.addEventListener("scroll", leave);
  element("search").addEventListener("input", () => { search(); keepState(false); });
  element("reset").addEventListener("click", () => { zoom(0); view.focus(); });
  element("by").addEventListener("change", (event) => {
    select(event.target.value);
    focus(-1);
    show(0);
    keepState(true);
  });
  element("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    remember("theme", document.documentElement.dataset.theme);
    recolour();
  });
  element("palette").addEventListener("click", () => {
    safe = !safe;
    remember("palette", safe ? "safe" : "");
    recolour();
  });
  element("more").addEventListener("click", () => {
    const details = element("details");
    details.hidden = !details.hidden;
    element("more").setAttribute("aria-expanded", String(!details.hidden));
  });
  darkPreferred.addEventListener("change", recolour);
  addEventListener("hashchange", restoreState);
  new ResizeObserver(layOut).observe(view);

  // ---- Start -------------------------------------------------------------------------------------------------------

  const chosenTheme = remembered("theme");
  if (chosenTheme === "light" || chosenTheme === "dark") document.documentElement.dataset.theme = chosenTheme;
  safe = remembered("palette") === "safe";
  element("title").textContent = profile.title;
  element("grouping").hidden = trees.size < 2;
  for (const by of trees.keys()) {
    const option = made("option", by === "none" ? "nothing" : by);
    option.value = by;
    element("by").append(option);
  }
  showTotals();
  showFacts();
  restoreState();
})();
