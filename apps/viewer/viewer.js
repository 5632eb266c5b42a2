// Viewer: one or two panes over films, tools, keys, marks. Talks to the app by one trigger, `act`.

const LAYOUTS = ["overlay", "side", "prior"];
const FAINT = 0.3;
const PREFIX = "vitdomains:";
const TYPING = "input:not([type='checkbox'], [type='radio']), textarea, select, [contenteditable='true'], [role='textbox'], [role='combobox'], [role='slider'], [role='grid']";
const keep = (key, value) => { try { (key === "settings" ? localStorage : sessionStorage).setItem(PREFIX + key, JSON.stringify(value)); } catch { /* private mode: nothing is kept */ } };
const kept = (key) => { try { return JSON.parse((key === "settings" ? localStorage : sessionStorage).getItem(PREFIX + key)); } catch { return null; } };

class Viewer {
  constructor(root) {
    this.root = root.querySelector("[data-viewer]");
    this.canvases = [...this.root.querySelectorAll("canvas")];
    this.films = [null, null];
    this.windows = [null, null];
    this.cached = [{}, {}];
    this.view = { zoom: 1, x: 0.5, y: 0.5, turns: 0, mirrored: false };
    this.settings = { heat: true, opacity: 45, colours: "inferno", contour: false, level: 10, layout: "overlay", tool: "window", ...kept("settings") };
    this.active = 0;
    this.heat = null;
    this.corner = null;
    this.off = new AbortController();
    this.listen();
  }

  // "With the prior" is kept for the next film that has one.
  get layout() { return this.settings.layout === "prior" && !this.data.prior ? "overlay" : this.settings.layout; }

  $(selector) { return this.root.querySelector(selector); }

  dispose() { this.off.abort(); this.watcher.disconnect(); clearTimeout(this.timer); }

  update(data, act) {
    this.data = data;
    this.act = act;
    this.$("[data-heatbar]").hidden = !!data.blinded;
    this.offer("[data-colours]", Object.keys(data.colourMaps).map((name) => [name, name]), this.settings.colours);
    this.$('[data-layout] [value="prior"]').disabled = !data.prior;
    this.regions = data.regions.map((r) => ({ ...r }));
    if (this.item !== data.item) this.open(data);
    if ((this.priorUrl ?? null) !== (data.prior?.url ?? null)) this.openPrior(data);
    this.takeHeat(data);
    this.showSettings();
    this.draw();
  }

  offer(selector, options, chosen) {
    const select = this.$(selector), text = JSON.stringify(options);
    if (select.dataset.options !== text) {
      select.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
      select.dataset.options = text;
    }
    select.value = chosen;
  }

  async open(data) {
    const item = (this.item = data.item);
    this.films[0] = this.heat = this.heatKey = null;
    this.corner = null;
    this.mark("opening", item);
    this.say("loading the film");
    try {
      const film = await Film.load(data.film);
      if (this.item !== item) return;
      const before = kept(`view:${item}`);
      this.films[0] = film;
      this.view = before?.view ?? { zoom: 1, x: 0.5, y: 0.5, turns: 0, mirrored: false };
      this.windows[0] = before ? { ...film.preset(before.preset), ...before.window } : { ...film.preset(0), inverted: false };
      if (before && !before.tabled) this.windows[0].table = null;
      this.offer("[data-preset]", film.presets.map((p, i) => [i, `${i + 1}  ${p.name}`]), this.windows[0].preset);
      this.cached[0] = {};
      this.draw();
      this.mark("film", item);
    } catch (error) {
      if (this.item === item) this.say(`The film could not be loaded (${error.message}). Reload the page.`);
    }
    // The browser keeps what it has fetched: the next film is there before it is asked for.
    if (data.next) fetch(data.next).catch(() => {});
  }

  async openPrior(data) {
    this.priorUrl = data.prior?.url ?? null;
    this.films[1] = null;
    if (!data.prior) return;
    try {
      const film = await Film.load(data.prior);
      if (this.priorUrl !== data.prior.url) return;
      this.films[1] = film;
      this.windows[1] = { ...film.preset(0), inverted: false };
      this.cached[1] = {};
      this.draw();
      this.mark("prior", data.prior.item);
    } catch (error) {
      this.say(`The prior film could not be loaded (${error.message}).`);
    }
  }

  async takeHeat(data) {
    clearTimeout(this.timer);
    this.root.dataset.waiting = String(!!data.heat?.pending);
    if (data.heat?.pending) {
      // The map is being computed: ask again, a little later each time. An answer that says the same does not reach this
      // component again, so the asking goes on by itself until something else comes.
      this.heatKey = data.heat.key;
      this.heat = null;
      let wait = 120;
      const ask = () => { this.act({ kind: "poll" }); wait = Math.min(wait * 1.4, 400); this.timer = setTimeout(ask, wait); };
      this.timer = setTimeout(ask, wait);
    } else if (!data.heat?.url) {
      this.heat = null;
      this.heatKey = null;
    } else if (this.heat?.key !== data.heat.key) {
      this.heatKey = data.heat.key;
      try {
        const heat = await Heat.load(data.heat);
        if (this.heatKey !== data.heat.key) return;
        this.heat = heat;
        this.draw();
        this.mark("heat", data.heat.key);
      } catch (error) {
        this.say(`The heat map could not be loaded (${error.message}).`);
      }
    }
  }

  mark(what, value) { this.root.dataset[what] = value; }

  say(text) { this.$("[data-status]").textContent = text; }

  showSettings() {
    const s = this.settings, w = this.windows[this.active];
    for (const b of this.root.querySelectorAll("[data-tool]")) b.setAttribute("aria-pressed", b.dataset.tool === s.tool);
    this.$('[data-do="heat"]').setAttribute("aria-pressed", s.heat);
    this.$('[data-do="invert"]').setAttribute("aria-pressed", !!w?.inverted);
    this.$('[data-do="flip"]').setAttribute("aria-pressed", this.view.mirrored);
    this.$("[data-opacity]").value = s.opacity;
    this.$("[data-colours]").value = s.colours;
    this.$("[data-contour]").checked = s.contour;
    this.$("[data-level]").value = s.level;
    this.$("[data-full]").checked = !!s.full;
    this.$("[data-layout]").value = this.layout;
    this.canvases[1].hidden = this.layout === "overlay" || this.data.blinded && this.layout === "side";
    if (w && w.preset !== undefined && this.active === 0) this.$("[data-preset]").value = w.preset;
    const scale = new OffscreenCanvas(96, 1), ramp = new ImageData(96, 1), colours = this.colours();
    for (let i = 0; i < 96; i++) { const v = Math.round((i / 95) * 255) * 3; ramp.data.set([colours[v], colours[v + 1], colours[v + 2], 255], 4 * i); }
    if (this.scaleOf !== s.colours) {
      this.scaleOf = s.colours;
      scale.getContext("2d").putImageData(ramp, 0, 0);
      scale.convertToBlob().then((blob) => { URL.revokeObjectURL(this.scaleUrl); this.$("[data-scale]").src = this.scaleUrl = URL.createObjectURL(blob); });
    }
    const marks = this.$("[data-marks]");
    marks.replaceChildren(...this.regions.map((r, i) => {
      const button = document.createElement("button");
      button.textContent = `${r.subject ? r.subject.replaceAll("_", " ") + " " : ""}${r.kind} ✕`;
      button.title = "Remove this mark";
      button.addEventListener("click", () => this.setRegions(this.regions.filter((_, k) => k !== i)));
      return button;
    }));
  }

  colours() {
    this.maps ??= {};
    const name = this.settings.colours in this.data.colourMaps ? this.settings.colours : Object.keys(this.data.colourMaps)[0];
    return (this.maps[name] ??= bytes(this.data.colourMaps[name]));
  }

  change(part) {
    Object.assign(this.settings, part);
    keep("settings", this.settings);
    this.showSettings();
    this.draw();
  }

  rewindow(part, pane = this.active) {
    if (!this.windows[pane]) return;
    Object.assign(this.windows[pane], part);
    this.keepView();
    this.showSettings();
    this.draw();
  }

  move(part) {
    Object.assign(this.view, part);
    this.view.zoom = Math.min(64, Math.max(0.25, this.view.zoom));
    this.keepView();
    this.showSettings();
    this.draw();
  }

  keepView() {
    const w = this.windows[0];
    if (!w || !this.films[0]) return;
    const { centre, width, fn, inverted } = w;
    keep(`view:${this.item}`, { view: this.view, preset: w.preset, tabled: !!w.table, window: { centre, width, fn, inverted } });
  }

  // Film pixels to canvas pixels of a pane, as a DOMMatrix; integers of film coordinates are pixel corners.
  matrix(pane, film) {
    const c = this.canvases[pane], v = this.view, turned = v.turns % 2 === 1;
    const fit = Math.min(c.width / (turned ? film.height : film.width), c.height / (turned ? film.width : film.height));
    const scale = fit * v.zoom;
    const m = new DOMMatrix().translateSelf(c.width / 2, c.height / 2).rotateSelf(90 * v.turns);
    return { m: m.scaleSelf(v.mirrored ? -scale : scale, scale).translateSelf(-v.x * film.width, -v.y * film.height), scale };
  }

  filmOf(pane) { return pane === 1 && this.layout === "prior" ? this.films[1] : this.films[0]; }

  windowOf(pane) { return pane === 1 && this.layout === "prior" ? 1 : 0; }

  draw() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => { this.asked = 0; this.paint(); });
  }

  paint() {
    const density = Math.min(2, window.devicePixelRatio || 1);
    for (const [pane, canvas] of this.canvases.entries()) {
      if (canvas.hidden) continue;
      const w = Math.round(canvas.clientWidth * density), h = Math.round(canvas.clientHeight * density);
      if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
      const context = canvas.getContext("2d"), film = this.filmOf(pane);
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.fillStyle = "#000";
      context.fillRect(0, 0, w, h);
      if (!film || !w || !h) continue;
      const prior = this.windowOf(pane) === 1, { m, scale } = this.matrix(pane, film);
      this.paintFilm(context, film, this.windows[prior ? 1 : 0], this.cached[pane], m, scale, w, h);
      const warm = this.layout !== "side" || pane === 1;
      if (this.heat && !prior && warm && this.settings.heat && !this.data.blinded) this.paintHeat(context, film, m, scale);
      if (!prior) this.paintRegions(context, m, scale, density);
      if (this.data.labels?.[prior ? 1 : 0] && this.layout === "prior") this.caption(context, this.data.labels[prior ? 1 : 0], density);
      if (this.byKeys && pane === this.active) this.paintCross(context, w, h, density);
    }
    const film = this.films[0], v = this.windows[this.active] ?? this.windows[0];
    if (!film || !v) return;
    const { scale } = this.matrix(0, film);
    const waiting = this.data.heat?.pending && !this.data.blinded ? "   heat map: being computed" : "";
    const faint = this.data.faint && this.heat && !this.settings.full && this.settings.heat && !this.data.blinded ? "   below the threshold: heat map faint" : "";
    const warning = this.data.heat?.error && this.settings.heat ? `   ${this.data.heat.error}` : "";
    const window_ = v.table ? "table of the file" : `W ${Math.round(v.width)}  C ${Math.round(v.centre)}`;
    this.say(`${window_}${v.inverted ? "  inverted" : ""}   ${Math.round((100 * scale) / density)} %   ${film.width} x ${film.height}${waiting}${faint}${warning}`);
    this.mark("faint", String(!!faint));
    this.mark("window", v.table ? "table" : `${v.centre}/${v.width}`);
    this.mark("painted", this.item);
  }

  paintFilm(context, film, view, cache, m, scale, w, h) {
    const k = Math.max(0, Math.floor(Math.log2(1 / scale))), level = film.level(k), step = film.width / level.width, stepY = film.height / level.height;
    // Of the level only what is in sight goes through the table: a drag stays smooth on a film of any size.
    const back = m.inverse(), corners = [[0, 0], [w, 0], [0, h], [w, h]].map(([x, y]) => back.transformPoint(new DOMPoint(x, y)));
    const xs = corners.map((p) => p.x / step), ys = corners.map((p) => p.y / stepY);
    const x0 = Math.max(0, Math.floor(Math.min(...xs)) - 1), x1 = Math.min(level.width, Math.ceil(Math.max(...xs)) + 1);
    const y0 = Math.max(0, Math.floor(Math.min(...ys)) - 1), y1 = Math.min(level.height, Math.ceil(Math.max(...ys)) + 1);
    if (x1 <= x0 || y1 <= y0) return;
    const key = [level.width, x0, x1, y0, y1, view.centre, view.width, view.fn, !!view.table, view.inverted].join();
    if (cache.key !== key || cache.film !== film) {
      const table = film.table(view), image = new ImageData(x1 - x0, y1 - y0), words = new Uint32Array(image.data.buffer);
      for (let y = y0, o = 0; y < y1; y++) for (let i = y * level.width + x0, end = y * level.width + x1; i < end; i++) words[o++] = table[level.levels[i]];
      cache.canvas = new OffscreenCanvas(image.width, image.height);
      cache.canvas.getContext("2d").putImageData(image, 0, 0);
      cache.key = key;
      cache.film = film;
    }
    context.setTransform(m);
    context.imageSmoothingEnabled = scale < 4;  // close up, pixels are shown as what they are
    context.imageSmoothingQuality = "high";
    context.drawImage(cache.canvas, x0 * step, y0 * stepY, (x1 - x0) * step, (y1 - y0) * stepY);
  }

  paintHeat(context, film, m, scale) {
    const s = this.settings, heat = this.heat, [x, y, width, height] = heat.rect;
    // Every map is stretched to its own maximum: of what the model does not call it is faint, or it would look like a finding.
    const opacity = (this.data.faint && !s.full ? FAINT : 1) * (s.opacity / 100), key = `${opacity}/${s.colours}`;
    if (heat.pictureKey !== key) { heat.picture_ = heat.picture(this.colours(), opacity); heat.pictureKey = key; }
    context.save();
    context.setTransform(m);
    context.beginPath();
    context.rect(0, 0, film.width, film.height);
    context.clip();
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(heat.picture_, x, y, width, height);
    if (s.contour) {
      if (heat.contourKey !== s.level) { heat.contour_ = heat.contour(s.level / 100); heat.contourKey = s.level; }
      context.translate(x, y);
      context.scale(width / heat.width, height / heat.height);
      context.lineWidth = (1.6 * heat.width) / (width * scale);
      context.strokeStyle = "#00ffff";
      context.stroke(heat.contour_);
    }
    context.restore();
  }

  paintRegions(context, m, scale, density) {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.lineWidth = 2 * density;
    context.font = `${12 * density}px system-ui, sans-serif`;
    for (const r of this.draft ? [...this.regions, this.draft] : this.regions) {
      const points = r.kind === "box" ? [[r.x, r.y], [r.x + r.width, r.y], [r.x + r.width, r.y + r.height], [r.x, r.y + r.height]] : [[r.x, r.y]];
      const at = points.map(([x, y]) => m.transformPoint(new DOMPoint(x + 0.5, y + 0.5)));
      for (const [style, wide] of [["#000", 4 * density], ["#ffd400", 2 * density]]) {
        context.strokeStyle = style;
        context.lineWidth = wide;
        context.beginPath();
        if (r.kind === "box") { context.moveTo(at[3].x, at[3].y); for (const p of at) context.lineTo(p.x, p.y); }
        else context.arc(at[0].x, at[0].y, 7 * density, 0, 7);
        context.stroke();
      }
      if (r.subject) { context.fillStyle = "#ffd400"; context.fillText(r.subject.replaceAll("_", " "), Math.min(...at.map((p) => p.x)), Math.min(...at.map((p) => p.y)) - 9 * density); }
    }
  }

  paintCross(context, w, h, density) {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.strokeStyle = "#ffd400";
    context.lineWidth = density;
    context.beginPath();
    context.moveTo(w / 2 - 12 * density, h / 2); context.lineTo(w / 2 + 12 * density, h / 2);
    context.moveTo(w / 2, h / 2 - 12 * density); context.lineTo(w / 2, h / 2 + 12 * density);
    context.stroke();
  }

  caption(context, text, density) {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.font = `${13 * density}px system-ui, sans-serif`;
    context.fillStyle = "#f0f0f0";
    context.fillText(text, 8 * density, 20 * density);
  }

  // Marks keep pixel centres at integers, as everywhere in the package; the canvas has corners there.
  filmPoint(pane, event) {
    const canvas = this.canvases[pane], box = canvas.getBoundingClientRect(), film = this.filmOf(pane);
    const x = ((event.clientX - box.left) * canvas.width) / box.width, y = ((event.clientY - box.top) * canvas.height) / box.height;
    const p = this.matrix(pane, film).m.inverse().transformPoint(new DOMPoint(x, y));
    return { x: Math.min(film.width - 1, Math.max(0, p.x - 0.5)), y: Math.min(film.height - 1, Math.max(0, p.y - 0.5)) };
  }

  setRegions(regions) {
    this.regions = regions;
    this.draft = null;
    this.act({ kind: "regions", item: this.item, regions });
    this.showSettings();
    this.draw();
  }

  box(a, b) {
    const round = (v) => Math.round(v * 10) / 10;
    return { kind: "box", x: round(Math.min(a.x, b.x)), y: round(Math.min(a.y, b.y)), width: round(Math.abs(a.x - b.x)), height: round(Math.abs(a.y - b.y)), subject: this.data.subject };
  }

  point(p) { return { kind: "point", x: Math.round(p.x * 10) / 10, y: Math.round(p.y * 10) / 10, width: 0, height: 0, subject: this.data.subject }; }

  listen() {
    const on = (target, type, handle, options) => target.addEventListener(type, handle, { signal: this.off.signal, ...options });
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(this.$("[data-panes]"));
    on(this.root, "click", (e) => {
      const button = e.target.closest("button");
      if (button?.dataset.tool) this.change({ tool: button.dataset.tool });
      else if (button?.dataset.do) this.command(button.dataset.do);
    });
    on(this.$("[data-preset]"), "change", (e) => this.rewindow(this.films[0].preset(Number(e.target.value)), 0));
    on(this.$("[data-layout]"), "change", (e) => this.change({ layout: e.target.value }));
    on(this.$("[data-opacity]"), "input", (e) => this.change({ opacity: Number(e.target.value) }));
    on(this.$("[data-colours]"), "change", (e) => this.change({ colours: e.target.value }));
    on(this.$("[data-full]"), "change", (e) => this.change({ full: e.target.checked }));
    on(this.$("[data-contour]"), "change", (e) => this.change({ contour: e.target.checked }));
    on(this.$("[data-level]"), "change", (e) => this.change({ level: Math.min(50, Math.max(1, Number(e.target.value) || 10)), contour: true }));
    // Who chose with the mouse goes on with the keys of the film; who chose with the keys stays where they are.
    for (const control of this.root.querySelectorAll("select, input")) {
      on(control, "pointerdown", () => { control.dataset.mouse = "1"; });
      on(control, "keydown", () => { delete control.dataset.mouse; });
      on(control, "change", () => { if (control.dataset.mouse && control.type !== "number") this.canvases[0].focus({ preventScroll: true }); });
    }
    for (const [pane, canvas] of this.canvases.entries()) {
      on(canvas, "pointerdown", (e) => this.press(pane, canvas, e));
      on(canvas, "wheel", (e) => { e.preventDefault(); this.zoomAt(pane, e, Math.exp(-e.deltaY / 500)); }, { passive: false });
      on(canvas, "contextmenu", (e) => e.preventDefault());
      on(canvas, "dblclick", () => this.command("fit"));
      on(canvas, "focus", () => { this.active = this.windowOf(pane); });
    }
    // In the capture phase, before the page's own single-key commands (r reruns the app, for one).
    on(window, "keydown", (e) => this.key(e), { capture: true });
  }

  press(pane, canvas, e) {
    const film = this.filmOf(pane);
    if (!film) return;
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(e.pointerId);
    this.byKeys = false;
    const tool = e.button === 1 ? "pan" : e.button === 2 ? "zoom" : this.settings.tool;
    const which = this.windowOf(pane), start = this.filmPoint(pane, e), { zoom } = this.view;
    const { centre, width } = this.windows[which], { m, scale } = this.matrix(pane, film), box = canvas.getBoundingClientRect();
    const density = canvas.width / box.width, back = m.inverse(), marking = (tool === "box" || tool === "point") && which === 0;
    let moved = false;
    const drag = (event) => {
      const dx = event.clientX - e.clientX, dy = event.clientY - e.clientY;
      moved ||= Math.hypot(dx, dy) > 3;
      if (!moved) return;
      if (tool === "window") this.rewindow({ width: Math.max(1, width + (dx * film.span) / 600), centre: centre + (dy * film.span) / 600, fn: this.windows[which].table ? "LINEAR_EXACT" : this.windows[which].fn, table: null }, which);
      else if (tool === "zoom") this.move({ zoom: zoom * Math.exp(-dy / 150) });
      else if (tool === "pan") {
        const a = back.transformPoint(new DOMPoint(0, 0)), b = back.transformPoint(new DOMPoint(-(event.clientX - last.x) * density, -(event.clientY - last.y) * density));
        this.move({ x: this.view.x + (b.x - a.x) / film.width, y: this.view.y + (b.y - a.y) / film.height });
        last = { x: event.clientX, y: event.clientY };
      } else if (marking && tool === "box") { this.draft = this.box(start, this.filmPoint(pane, event)); this.draw(); }
    };
    let last = { x: e.clientX, y: e.clientY };
    const release = () => {
      canvas.removeEventListener("pointermove", drag);
      if (marking && tool === "box" && this.draft && this.draft.width >= 1 && this.draft.height >= 1) this.setRegions([...this.regions, this.draft]);
      else if (marking && tool === "point") this.setRegions([...this.regions, this.point(start)]);
      this.draft = null;
    };
    canvas.addEventListener("pointermove", drag);
    canvas.addEventListener("pointerup", release, { once: true });
    canvas.addEventListener("pointercancel", release, { once: true });
  }

  zoomAt(pane, e, factor) {
    const film = this.filmOf(pane);
    if (!film) return;
    const before = this.filmPoint(pane, e);
    this.view.zoom = Math.min(64, Math.max(0.25, this.view.zoom * factor));
    const after = this.filmPoint(pane, e);
    this.move({ x: this.view.x + (before.x - after.x) / film.width, y: this.view.y + (before.y - after.y) / film.height });
  }

  command(what) {
    const film = this.films[0];
    if (what === "heat") return this.change({ heat: !this.settings.heat });
    if (!film) return;
    if (what === "invert") this.rewindow({ inverted: !this.windows[this.active]?.inverted });
    else if (what === "rotate") this.move({ turns: (this.view.turns + 1) % 4 });
    else if (what === "back") this.move({ turns: (this.view.turns + 3) % 4 });
    else if (what === "flip") this.move({ mirrored: !this.view.mirrored });
    else if (what === "fit") this.move({ zoom: 1, x: 0.5, y: 0.5 });
    else if (what === "full") this.move({ zoom: (this.view.zoom * Math.min(2, window.devicePixelRatio || 1)) / this.matrix(0, film).scale });
    else if (what === "reset") {
      this.windows[0] = { ...film.preset(0), inverted: false };
      if (this.films[1]) this.windows[1] = { ...this.films[1].preset(0), inverted: false };
      this.move({ zoom: 1, x: 0.5, y: 0.5, turns: 0, mirrored: false });
    }
  }

  // A mark by the keyboard is set at the cross in the middle of the pane: Shift and arrows move the film under it.
  markHere() {
    const film = this.films[0], at = { x: this.view.x * film.width - 0.5, y: this.view.y * film.height - 0.5 };
    if (this.settings.tool === "point") return this.setRegions([...this.regions, this.point(at)]);
    if (!this.corner) { this.corner = at; this.say("first corner set: move on and press Enter again"); return undefined; }
    const box = this.box(this.corner, at);
    this.corner = null;
    if (box.width >= 1 && box.height >= 1) this.setRegions([...this.regions, box]);
    return undefined;
  }

  key(e) {
    const from = e.composedPath()[0];
    if (!this.films[0] || e.ctrlKey || e.metaKey || e.altKey || (from instanceof Element && from.closest(TYPING))) return;
    if (document.querySelector('[role="dialog"]')) return;
    const commands = { i: "invert", r: "rotate", l: "back", h: "flip", "=": "fit", f: "full", m: "heat" };
    const tools = { w: "window", c: "zoom", g: "pan", b: "box", k: "point" };
    const view = this.windows[this.active], step = (this.films[this.active] ?? this.films[0]).span / 40;
    const shifts = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const onFilm = this.canvases.includes(from);
    let done = true;
    if (!e.shiftKey && commands[e.key]) this.command(commands[e.key]);
    else if (e.key === " " && !(from instanceof Element && from.closest("button, a, input, [role='button']"))) this.command("reset");
    else if (!e.shiftKey && tools[e.key]) this.change({ tool: tools[e.key] });
    else if (/^[1-9]$/.test(e.key)) { const n = Number(e.key) - 1; if (n < this.films[0].presets.length) this.rewindow(this.films[0].preset(n), 0); }
    else if (e.key === "+" || e.key === "-") this.move({ zoom: this.view.zoom * (e.key === "+" ? 1.25 : 0.8) });
    else if ("[],.".includes(e.key) && view) {
      const linear = view.table ? { table: null, fn: "LINEAR_EXACT" } : {};
      if (e.key === "[" || e.key === "]") this.rewindow({ ...linear, width: Math.max(1, view.width + (e.key === "]" ? step : -step)) });
      else this.rewindow({ ...linear, centre: view.centre + (e.key === "." ? step : -step) });
    } else if (e.shiftKey && shifts[e.key]) {
      const [x, y] = shifts[e.key], film = this.films[0], back = this.matrix(0, film).m.inverse(), d = 24;
      const a = back.transformPoint(new DOMPoint(0, 0)), b = back.transformPoint(new DOMPoint(x * d, y * d));
      this.byKeys = this.settings.tool === "box" || this.settings.tool === "point";
      this.move({ x: Math.min(1, Math.max(0, this.view.x + (b.x - a.x) / film.width)), y: Math.min(1, Math.max(0, this.view.y + (b.y - a.y) / film.height)) });
    } else if (e.key === "s") {
      const offered = LAYOUTS.filter((name) => name !== "prior" || this.data.prior);
      this.change({ layout: offered[(offered.indexOf(this.layout) + 1) % offered.length] });
    } else if (e.key === "Enter" && onFilm && (this.settings.tool === "box" || this.settings.tool === "point")) { this.byKeys = true; this.markHere(); }
    else if ((e.key === "Delete" || e.key === "Backspace") && this.regions.length && onFilm) this.setRegions(this.regions.slice(0, -1));
    else if (e.key === "Escape" && (this.corner || this.byKeys)) { this.corner = null; this.byKeys = false; this.draw(); }
    else done = false;
    if (done) { e.preventDefault(); e.stopImmediatePropagation(); }
  }
}

const viewers = new WeakMap();

export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  let viewer = viewers.get(parentElement);
  if (!viewer) { viewer = new Viewer(parentElement); viewers.set(parentElement, viewer); }
  viewer.update(data, (act) => setTriggerValue("act", act));
  return () => { viewer.dispose(); viewers.delete(parentElement); };
}
