// Map: pictures of the scene, tiles over them, one tile in focus. Talks to the app by one trigger, `act`.
// World coordinates are pixels of the scene; `scale` is screen pixels (CSS) a scene pixel.

const PREFIX = "vitdomains:map:";
const MANY = 6000; // more tiles in view than this are drawn as one picture, made when the colours change
const LAYER = 2048;
const TYPING = "input:not([type='checkbox'], [type='radio'], [type='range']), textarea, select, [contenteditable='true'], [role='textbox'], [role='combobox'], [role='slider'], [role='grid']";
const keep = (key, value) => { try { sessionStorage.setItem(PREFIX + key, JSON.stringify(value)); } catch { /* private mode: nothing is kept */ } };
const kept = (key) => { try { return JSON.parse(sessionStorage.getItem(PREFIX + key)); } catch { return null; } };
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

// A file may be away for a moment, while the page is made anew: ask again, as long as it is wanted.
async function fetched(url, wanted = () => true) {
  for (let wait = 250; ; wait *= 2) {
    const answer = await fetch(url);
    if (answer.ok || wait > 4000 || !wanted()) {
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      return answer;
    }
    await new Promise((done) => { setTimeout(done, wait); });
  }
}

async function grey(url, wanted) {
  const bitmap = await createImageBitmap(await (await fetched(url, wanted)).blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  return { width: bitmap.width, height: bitmap.height, values: Uint8Array.from({ length: rgba.length / 4 }, (_, i) => rgba[4 * i]) };
}

class TileMap {
  constructor(root) {
    this.root = root.querySelector("[data-map]");
    this.canvas = this.root.querySelector("canvas");
    this.view = null;
    this.base = this.detail = this.places = this.paints = this.heat = this.layer = null;
    this.settings = { tool: "pan", opacity: 45, tiles: true, around: false, heat: true, warm: 55, colours: "inferno", ...kept("settings") };
    this.settings.tool = "pan";
    this.hover = -1;
    this.fetched = new Set();
    this.off = new AbortController();
    this.listen();
  }

  $(selector) { return this.root.querySelector(selector); }
  mark(what, value) { this.root.dataset[what] = value; }
  dispose() { this.off.abort(); this.watcher.disconnect(); clearTimeout(this.timer); clearTimeout(this.looking); }

  get tilesOn() { return this.data.mode === "tile" ? this.settings.around : this.settings.tiles; }

  // What the reader has gone on to before the page followed is shown in the place of what the page says.
  leading(data) {
    const early = window.vitdomains?.early;
    this.early = early?.focus && data.mode === "tile" && early.item !== data.item ? early.text : "";
    if (!this.early) return data;
    const [x, y, w, h] = early.focus, detail = data.ahead?.[early.item] ?? (this.detailUrl ? { url: this.detailUrl } : null);
    return { ...data, item: early.item, focus: early.focus, home: [x - w, y - h, 3 * w, 3 * h], detail, heat: null };
  }

  update(given, act) {
    this.given = given;
    for (const next of Object.values(given.ahead ?? {})) if (!this.fetched.has(next.url)) { this.fetched.add(next.url); fetch(next.url).catch(() => {}); }
    const data = this.leading(given), place = data.mode === "tile" ? data.item : "map";
    this.data = data;
    this.act = act;
    if (this.place !== place) {
      this.place = place;
      this.asked = "";
      const before = kept(`view:${place}`);
      this.view = before && before.home === data.home.join() ? before.view : null;
      this.hover = -1;
    }
    this.$(".panes").style.setProperty("--taken", `${data.taken}px`);
    this.mark("item", data.item ?? "");
    this.mark("mode", data.mode);
    this.mark("bands", data.look);
    this.$("[data-heatbar]").hidden = data.mode !== "tile";
    const names = Object.keys(data.colourMaps ?? {}), select = this.$("[data-colours]");
    if (select.options.length !== names.length) select.replaceChildren(...names.map((name) => new Option(name, name)));
    this.take("base", data.base);
    this.take("detail", data.detail);
    this.takeTiles(data.tiles);
    this.takeHeat(data.heat);
    this.show();
    this.draw();
  }

  async take(what, about) {
    const url = about?.url ?? "";
    if (this[`${what}Url`] === url) return;
    this[`${what}Url`] = url;
    if (!url) { this[what] = null; return; }
    try {
      const wanted = () => this[`${what}Url`] === url;
      const bitmap = await createImageBitmap(await (await fetched(url, wanted)).blob());
      if (!wanted()) return;
      this[what] = { bitmap, rect: about.rect };
      this.mark(what, about.key ?? url);
      this.draw();
    } catch (error) { if (this[`${what}Url`] === url) this.say(`The scene could not be loaded (${error.message}). Reload the page.`); }
  }

  async takeTiles(about) {
    try {
      if (this.placesUrl !== about.places) {
        const url = (this.placesUrl = about.places), wanted = () => this.placesUrl === url;
        this.places = null; // those of before may say what is no longer to be seen
        const buffer = await (await fetched(url, wanted)).arrayBuffer(), n = about.count;
        if (!wanted()) return;
        this.places = { at: new Int32Array(buffer, 0, 4 * n), code: new Uint16Array(buffer, 16 * n, n), percent: new Uint8Array(buffer, 18 * n, n), n };
        this.layer = null;
      }
      if (this.paintUrl !== about.paint) {
        const url = (this.paintUrl = about.paint), wanted = () => this.paintUrl === url;
        const buffer = await (await fetched(url, wanted)).arrayBuffer();
        if (!wanted()) return;
        this.paints = new Uint8Array(buffer);
        this.layer = null;
        this.mark("paint", url);
      }
      this.draw();
    } catch (error) { if (this.data.tiles === about) this.say(`The tiles could not be loaded (${error.message}). Reload the page.`); }
  }

  async takeHeat(about) {
    clearTimeout(this.timer);
    this.root.dataset.waiting = String(!!about?.pending);
    if (about?.pending) {
      // It is being computed: ask again, a little later each time. An answer that says the same does not reach this component.
      this.heat = null;
      this.heatKey = about.key;
      let wait = 100;
      const ask = () => { this.act({ kind: "poll" }); wait = Math.min(wait * 1.4, 400); this.timer = setTimeout(ask, wait); };
      this.timer = setTimeout(ask, wait);
    } else if (!about?.url) {
      this.heat = null;
      this.heatKey = null;
    } else if (this.heat?.key !== about.key) {
      this.heatKey = about.key;
      try {
        const found = await grey(about.url, () => this.heatKey === about.key);
        if (this.heatKey !== about.key) return;
        this.heat = { ...found, key: about.key, rect: about.rect };
        this.mark("heat", about.key);
        this.draw();
      } catch (error) { if (this.heatKey === about.key) this.say(`The heat map could not be loaded (${error.message}).`); }
    }
  }

  say(text) { this.$("[data-status]").textContent = text; }

  colours() {
    const maps = this.data.colourMaps ?? {}, name = this.settings.colours in maps ? this.settings.colours : Object.keys(maps)[0];
    this.maps ??= {};
    return name ? (this.maps[name] ??= bytes(maps[name])) : null;
  }

  show() {
    const s = this.settings;
    for (const b of this.root.querySelectorAll("[data-tool]")) b.setAttribute("aria-pressed", b.dataset.tool === s.tool);
    this.$('[data-tool="area"]').hidden = this.data.mode === "tile";
    this.$('[data-do="tiles"]').setAttribute("aria-pressed", this.tilesOn);
    this.$('[data-do="heat"]').setAttribute("aria-pressed", s.heat);
    this.$("[data-opacity]").value = s.opacity;
    this.$("[data-warm]").value = s.warm;
    this.mark("tool", s.tool);
    const colours = this.colours();
    if (!colours) return;
    this.$("[data-colours]").value = s.colours;
    if (this.scaleOf === s.colours) return;
    this.scaleOf = s.colours;
    const scale = new OffscreenCanvas(60, 1), ramp = new ImageData(60, 1);
    for (let i = 0; i < 60; i++) { const v = Math.round((i / 59) * 255) * 3; ramp.data.set([colours[v], colours[v + 1], colours[v + 2], 255], 4 * i); }
    scale.getContext("2d").putImageData(ramp, 0, 0);
    scale.convertToBlob().then((blob) => { URL.revokeObjectURL(this.scaleUrl); this.$("[data-scale]").src = this.scaleUrl = URL.createObjectURL(blob); });
  }

  change(part) { Object.assign(this.settings, part); keep("settings", this.settings); this.show(); this.draw(); }

  // The view that shows a rectangle of the scene with a little air around it.
  fitted([x, y, w, h]) {
    const width = this.canvas.clientWidth || 800, height = this.canvas.clientHeight || 500;
    return { x: x + w / 2, y: y + h / 2, scale: 0.98 * Math.min(width / w, height / h) };
  }

  move(part) {
    const whole = Math.max(this.data.scene.width, this.data.scene.height);
    Object.assign(this.view, part);
    this.view.scale = Math.min(64, Math.max(40 / whole, this.view.scale));
    this.view.x = Math.min(this.data.scene.width, Math.max(0, this.view.x));
    this.view.y = Math.min(this.data.scene.height, Math.max(0, this.view.y));
    keep(`view:${this.place}`, { view: this.view, home: this.data.home.join() });
    this.draw();
  }

  zoom(factor, at) {
    const v = this.view, c = this.canvas, p = at ?? { x: c.clientWidth / 2, y: c.clientHeight / 2 };
    const scale = Math.min(64, Math.max(40 / Math.max(this.data.scene.width, this.data.scene.height), v.scale * factor));
    const dx = p.x - c.clientWidth / 2, dy = p.y - c.clientHeight / 2;
    this.move({ x: v.x + dx / v.scale - dx / scale, y: v.y + dy / v.scale - dy / scale, scale });
  }

  world(e) {
    const box = this.canvas.getBoundingClientRect(), v = this.view;
    return { x: v.x + (e.clientX - box.left - box.width / 2) / v.scale, y: v.y + (e.clientY - box.top - box.height / 2) / v.scale };
  }

  // The tile in sight whose centre is nearest among those over a point; -1 where there is none.
  tileAt(p) {
    const t = this.places;
    if (!t || !this.paints) return -1;
    let best = -1, least = Infinity;
    for (let i = 0, k = 0; i < t.n; i++, k += 4) {
      const x = t.at[k], y = t.at[k + 1], w = t.at[k + 2], h = t.at[k + 3];
      if (p.x < x || p.y < y || p.x >= x + w || p.y >= y + h || !this.paints[4 * i + 3]) continue;
      const d = (x + w / 2 - p.x) ** 2 + (y + h / 2 - p.y) ** 2;
      if (d < least) { least = d; best = i; }
    }
    return best;
  }

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => { this.drawing = 0; this.paint(); });
  }

  paint() {
    const c = this.canvas, density = Math.min(2, window.devicePixelRatio || 1);
    const width = Math.round(c.clientWidth * density), height = Math.round(c.clientHeight * density);
    if (!width || !height) return;
    if (c.width !== width || c.height !== height) { c.width = width; c.height = height; }
    this.view ??= this.fitted(this.data.home);
    const g = c.getContext("2d"), v = this.view, s = v.scale * density;
    g.setTransform(1, 0, 0, 1, 0, 0);
    g.fillStyle = "#15181c";
    g.fillRect(0, 0, width, height);
    g.setTransform(s, 0, 0, s, width / 2 - v.x * s, height / 2 - v.y * s);
    for (const part of [this.base, this.detail]) {
      if (!part) continue;
      g.imageSmoothingEnabled = s * part.rect[2] / part.bitmap.width < 4; // close up, pixels are shown as what they are
      g.imageSmoothingQuality = "high";
      g.drawImage(part.bitmap, ...part.rect);
    }
    const sight = [v.x - width / 2 / s, v.y - height / 2 / s, width / s, height / s];
    if (this.tilesOn && this.places && this.paints) this.paintTiles(g, s, sight);
    if (this.heat && this.settings.heat && this.data.mode === "tile") this.paintHeat(g);
    this.paintLines(g, s);
    this.look(sight, density);
    const waiting = this.data.heat?.pending ? "   heat map: being computed" : "", wrong = this.data.heat?.error ? `   ${this.data.heat.error}` : "";
    this.say(this.early || `${Math.round(100 * v.scale)} %   ${this.data.scene.width} x ${this.data.scene.height}${this.data.unit ?? ""}${waiting}${wrong}`);
    if (this.base && this.paints) this.mark("painted", `${this.place}`);
  }

  paintTiles(g, s, [left, top, w, h]) {
    const t = this.places, [sx, sy] = this.data.tiles.step, found = [];
    for (let i = 0, k = 0; i < t.n && found.length <= MANY; i++, k += 4) {
      if (!this.paints[4 * i + 3]) continue;
      const x = t.at[k], y = t.at[k + 1];
      if (x + t.at[k + 2] >= left && y + t.at[k + 3] >= top && x <= left + w && y <= top + h) found.push(i);
    }
    this.mark("drawn", found.length > MANY ? "layer" : String(found.length));
    g.globalAlpha = this.settings.opacity / 100;
    if (found.length > MANY) {
      this.layer ??= this.makeLayer();
      g.imageSmoothingEnabled = false;
      g.drawImage(this.layer, 0, 0, this.data.scene.width, this.data.scene.height);
    } else {
      const gap = s * Math.min(sx, sy) > 8 ? 1 / s : 0; // a line of the scene between tiles, where there is room for it
      for (const i of found) this.fillTile(g, i, sx, sy, gap);
    }
    g.globalAlpha = 1;
  }

  // A tile is drawn as the part around its centre that no neighbour has: overlaps would darken each other.
  fillTile(g, i, sx, sy, gap) {
    const t = this.places, k = 4 * i, p = this.paints, w = Math.min(sx, t.at[k + 2]), h = Math.min(sy, t.at[k + 3]);
    g.fillStyle = `rgba(${p[k]},${p[k + 1]},${p[k + 2]},${p[k + 3] / 255})`;
    g.fillRect(t.at[k] + (t.at[k + 2] - w) / 2, t.at[k + 1] + (t.at[k + 3] - h) / 2, w - gap, h - gap);
  }

  makeLayer() {
    const { width, height } = this.data.scene, shrink = Math.min(1, LAYER / Math.max(width, height));
    const layer = new OffscreenCanvas(Math.max(1, Math.round(width * shrink)), Math.max(1, Math.round(height * shrink)));
    const g = layer.getContext("2d"), [sx, sy] = this.data.tiles.step;
    g.scale(layer.width / width, layer.height / height);
    for (let i = 0; i < this.places.n; i++) if (this.paints[4 * i + 3]) this.fillTile(g, i, sx, sy, 0);
    return layer;
  }

  paintHeat(g) {
    const colours = this.colours(), heat = this.heat, key = `${this.settings.colours}`;
    if (!colours) return;
    if (heat.drawnAs !== key) {
      const image = new ImageData(heat.width, heat.height);
      for (let i = 0; i < heat.values.length; i++) { const v = 3 * heat.values[i]; image.data.set([colours[v], colours[v + 1], colours[v + 2], 60 + Math.round(0.76 * heat.values[i])], 4 * i); }
      heat.canvas = new OffscreenCanvas(heat.width, heat.height);
      heat.canvas.getContext("2d").putImageData(image, 0, 0);
      heat.drawnAs = key;
    }
    const [x, y, w, h] = this.data.focus ?? heat.rect;
    g.save();
    g.beginPath();
    g.rect(x, y, w, h);
    g.clip();
    g.globalAlpha = this.settings.warm / 100;
    g.imageSmoothingEnabled = true;
    g.drawImage(heat.canvas, ...heat.rect);
    g.restore();
  }

  paintLines(g, s) {
    const box = ([x, y, w, h], colour, width) => {
      g.lineWidth = (width + 2) / s; g.strokeStyle = "#000a"; g.strokeRect(x, y, w, h);
      g.lineWidth = width / s; g.strokeStyle = colour; g.strokeRect(x, y, w, h);
    };
    const path = (points, close) => {
      g.beginPath();
      points.forEach(([x, y], i) => (i ? g.lineTo(x, y) : g.moveTo(x, y)));
      if (close) g.closePath();
      for (const [colour, width] of [["#000a", 4], ["#fff", 2]]) { g.lineWidth = width / s; g.strokeStyle = colour; g.stroke(); }
    };
    if (this.data.area?.length) path(this.data.area, true);
    if (this.drawn?.length > 1) path(this.drawn, false);
    if (this.data.focus) box(this.data.focus, "#fff", 2);
    if (this.hover >= 0 && this.places) box([...this.places.at.subarray(4 * this.hover, 4 * this.hover + 4)], "#ffe08a", 1.5);
    if (this.byKeys) {
      const { x, y } = this.view, d = 9 / s;
      path([[x - d, y], [x + d, y]], false);
      path([[x, y - d], [x, y + d]], false);
    }
  }

  // Where the pictures at hand are too coarse for this view, ask for the part in sight, once the view has come to rest.
  look([left, top, w, h], density) {
    clearTimeout(this.looking);
    const { width, height } = this.data.scene, x = Math.max(0, left), y = Math.max(0, top);
    const right = Math.min(width, left + w), bottom = Math.min(height, top + h);
    if (!this.base || right <= x || bottom <= y) return;
    const fine = (part) => part && part.bitmap.width / part.rect[2] >= Math.min(1, 0.75 * this.view.scale * density);
    const holds = (part) => part.rect[0] <= x + 1 && part.rect[1] <= y + 1 && part.rect[0] + part.rect[2] >= right - 1 && part.rect[1] + part.rect[3] >= bottom - 1;
    if (fine(this.base) || (fine(this.detail) && holds(this.detail))) return;
    // A margin around it, so that a small move asks for nothing.
    const mx = (right - x) / 4, my = (bottom - y) / 4;
    const wanted = [Math.floor(Math.max(0, x - mx)), Math.floor(Math.max(0, y - my)), Math.ceil(Math.min(width, right + mx)), Math.ceil(Math.min(height, bottom + my))];
    const asked = wanted.join() + this.data.look;
    if (asked === this.asked) return;
    this.looking = setTimeout(() => {
      this.asked = asked;
      this.act({ kind: "look", place: this.place, window: [wanted[0], wanted[1], wanted[2] - wanted[0], wanted[3] - wanted[1]] });
    }, 250);
  }

  openTile(i) { if (i >= 0) this.act({ kind: "open", index: i, at: Date.now() }); }

  listen() {
    const c = this.canvas, signal = { signal: this.off.signal };
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(c);
    c.addEventListener("wheel", (e) => {
      e.preventDefault();
      const box = c.getBoundingClientRect();
      if (this.view) this.zoom(Math.exp(-e.deltaY / 400), { x: e.clientX - box.left, y: e.clientY - box.top });
    }, { ...signal, passive: false });
    c.addEventListener("pointerdown", (e) => this.press(e), signal);
    c.addEventListener("pointermove", (e) => this.point(e), signal);
    c.addEventListener("pointerleave", () => { this.hover = -1; this.$("[data-tip]").hidden = true; this.draw(); }, signal);
    for (const b of this.root.querySelectorAll("[data-tool]")) b.addEventListener("click", () => this.change({ tool: b.dataset.tool }), signal);
    for (const b of this.root.querySelectorAll("[data-do]")) b.addEventListener("click", () => this.command(b.dataset.do), signal);
    this.$("[data-opacity]").addEventListener("input", (e) => this.change({ opacity: Number(e.target.value) }), signal);
    this.$("[data-warm]").addEventListener("input", (e) => this.change({ warm: Number(e.target.value) }), signal);
    this.$("[data-colours]").addEventListener("change", (e) => this.change({ colours: e.target.value }), signal);
    window.addEventListener("vitdomains:shown", () => { if (this.given) this.update(this.given, this.act); }, signal);
    document.addEventListener("keydown", (e) => this.key(e), { ...signal, capture: true });
  }

  press(e) {
    if (!this.view || e.button > 1) return;
    const c = this.canvas, lasso = this.settings.tool === "area" && e.button === 0 && this.data.mode !== "tile";
    c.setPointerCapture(e.pointerId);
    c.focus({ preventScroll: true });
    let last = { x: e.clientX, y: e.clientY }, moved = 0;
    if (lasso) { const p = this.world(e); this.drawn = [[p.x, p.y]]; }
    const drag = (m) => {
      moved += Math.abs(m.clientX - last.x) + Math.abs(m.clientY - last.y);
      if (lasso) { const p = this.world(m); this.drawn.push([p.x, p.y]); this.draw(); }
      else if (moved > 3) this.move({ x: this.view.x - (m.clientX - last.x) / this.view.scale, y: this.view.y - (m.clientY - last.y) / this.view.scale });
      last = { x: m.clientX, y: m.clientY };
    };
    const end = (m) => {
      c.removeEventListener("pointermove", drag);
      c.removeEventListener("pointerup", end);
      c.removeEventListener("pointercancel", end);
      if (lasso) this.endLasso(moved);
      else if (moved <= 3 && m.type === "pointerup") this.openTile(this.tileAt(this.world(m)));
    };
    c.addEventListener("pointermove", drag);
    c.addEventListener("pointerup", end);
    c.addEventListener("pointercancel", end);
  }

  endLasso(moved) {
    const all = this.drawn, step = Math.max(1, Math.ceil(all.length / 60));
    this.drawn = null;
    if (moved > 12) this.act({ kind: "area", points: all.filter((_, i) => i % step === 0).map(([x, y]) => [Math.round(x), Math.round(y)]), at: Date.now() });
    this.change({ tool: "pan" });
  }

  point(e) {
    if (!this.view || this.drawn || !this.places) return;
    const p = this.world(e), i = this.tileAt(p), tip = this.$("[data-tip]");
    const box = this.canvas.getBoundingClientRect();
    tip.hidden = i < 0;
    if (i >= 0) {
      const name = this.data.tiles.names[this.places.code[i]];
      tip.textContent = name ? `${name} ${(this.places.percent[i] / 100).toFixed(2)}` : this.data.tiles.absent;
      const x = e.clientX - box.left, y = e.clientY - box.top;
      tip.style.left = `${Math.min(x + 12, box.width - tip.offsetWidth - 4)}px`;
      tip.style.top = `${y > 40 ? y - 26 : y + 16}px`;
    }
    if (i !== this.hover) { this.hover = i; this.draw(); }
  }

  command(what) {
    if (!this.view) return;
    const density = Math.min(2, window.devicePixelRatio || 1);
    if (what === "in" || what === "out") this.zoom(what === "in" ? 1.4 : 1 / 1.4);
    else if (what === "fit") this.move(this.fitted(this.data.home));
    else if (what === "full") this.move({ scale: 1 / density });
    else if (what === "heat") this.change({ heat: !this.settings.heat });
    else if (what === "tiles") this.change(this.data.mode === "tile" ? { around: !this.settings.around } : { tiles: !this.settings.tiles });
  }

  key(e) {
    const from = e.composedPath()[0];
    if (!this.view || e.ctrlKey || e.metaKey || e.altKey || (from instanceof Element && from.closest(TYPING))) return;
    if (document.querySelector('[role="dialog"]')) return;
    const commands = { "+": "in", "-": "out", "=": "fit", f: "full", t: "tiles", ...(this.data.mode === "tile" ? { m: "heat" } : {}) };
    const shifts = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    let done = true;
    if (commands[e.key]) this.command(commands[e.key]);
    else if (e.key === "p") this.change({ tool: "pan" });
    else if (e.key === "l" && this.data.mode !== "tile") this.change({ tool: "area" });
    else if (shifts[e.key] && (e.shiftKey || (from === this.canvas && this.data.mode !== "tile"))) {
      this.byKeys = this.data.mode !== "tile";
      this.move({ x: this.view.x + (40 * shifts[e.key][0]) / this.view.scale, y: this.view.y + (40 * shifts[e.key][1]) / this.view.scale });
    } else if (e.key === "Enter" && from === this.canvas && this.data.mode !== "tile") { this.byKeys = true; this.openTile(this.tileAt(this.view)); this.draw(); }
    else if (e.key === "Escape" && this.byKeys) { this.byKeys = false; this.draw(); }
    else done = false;
    if (done) { e.preventDefault(); e.stopImmediatePropagation(); }
  }
}

const maps = new WeakMap();

export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  let map = maps.get(parentElement);
  if (!map) { map = new TileMap(parentElement); maps.set(parentElement, map); }
  map.update(data, (act) => setTriggerValue("act", act));
  return () => { map.dispose(); maps.delete(parentElement); };
}
