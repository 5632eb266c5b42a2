// Commands: keys and clicks of a page, each with the item and the draft that were on the screen, carried out one after the other.
// What follows (`ahead`) is shown at once; the server comes after. Talks to the app by one trigger, `act`.

const FIELD = "input:not([type='checkbox'], [type='radio'], [type='range'], [type='button']), textarea, select, [contenteditable='true'], [role='textbox'], [role='combobox'], [role='slider'], [role='grid'], [role='listbox']";
const OPEN = "[role='dialog'], [role='listbox'], [role='menu'], [data-testid='stPopoverBody']";
const CHOICE = "[role='radiogroup'], [role='tablist'], input[type='radio'], input[type='range']";
const AGAIN = 1500; // milliseconds after which what has no answer is sent again
const SHOWN_FOR = 7000;

class Commands {
  constructor() {
    this.page = [...crypto.getRandomValues(new Uint32Array(4))].join("-");
    this.number = this.read = 0;
    this.queue = [];
    this.ahead = [];
    document.addEventListener("keydown", (e) => this.key(e), { capture: true });
    document.addEventListener("click", (e) => this.click(e), { capture: true });
    window.addEventListener("vitdomains:command", (e) => this.push(e.detail));
    window.addEventListener("vitdomains:chosen", (e) => { this.ahead = []; this.show(e.detail, true); });
    // Never while the server works: it would begin anew, and on a slow machine never end.
    setInterval(() => {
      const idle = document.querySelector("[data-testid='stApp']")?.dataset.testScriptState === "notRunning";
      if (!idle) this.sent = Date.now();
      else if (this.queue.length && Date.now() - this.sent > AGAIN) this.deliver();
      this.connection();
    }, 500);
  }

  update(root, data, send) {
    this.root = root;
    this.data = data;
    this.send = send;
    const done = data.done[this.page] ?? 0;
    this.queue = this.queue.filter((c) => c.n > done);
    const at = data.ahead.findIndex((x) => x.item === this.shown?.item);
    if (this.queue.some((c) => c.advanced) && (at >= 0 || this.shown?.item === data.item)) this.ahead = data.ahead.slice(at + 1);
    else if (!this.queue.some((c) => c.advanced)) { this.ahead = data.ahead; this.show({ item: data.item, seen: data.seen }, false); }
    for (const [key, name] of Object.entries(data.keys)) this.button(name)?.setAttribute("aria-keyshortcuts", key);
    // The panel begins at its top with every item, and what is in focus can be seen.
    if (this.drawn !== data.item) for (const panel of document.querySelectorAll(".st-key-findings")) panel.scrollTop = panel.parentElement.scrollTop = 0;
    this.drawn = data.item;
    requestAnimationFrame(() => document.querySelector(".st-key-findings .vd-finding.now")?.scrollIntoView({ block: "nearest" }));
    this.tell();
  }

  button(name) { return document.querySelector(`.st-key-${CSS.escape(name.replace(/[^a-zA-Z0-9_-]/g, "-"))} button`); }

  // `early`: before the server has drawn it.
  show(x, early) {
    if (x.item !== this.shown?.item) this.since = Date.now();
    this.shown = x;
    const about = document.documentElement.dataset;
    about.vdItem = x.item;
    if (early) about.vdEarly = ""; else delete about.vdEarly;
    window.vitdomains = { ...window.vitdomains, early: early ? x : null };
    window.dispatchEvent(new CustomEvent("vitdomains:shown"));
  }

  key(e) {
    const from = e.composedPath()[0];
    if (!this.data || e.ctrlKey || e.metaKey || e.altKey || !(from instanceof Element)) return;
    if (from.closest(FIELD)) {
      // Esc ends the writing; the page stays.
      if (e.key === "Escape" && !document.querySelector(OPEN)) from.blur();
      return;
    }
    if (document.querySelector(OPEN)) return;
    const digit = e.code.startsWith("Digit"), symbol = !digit && e.key.length === 1 && !/[a-z0-9]/i.test(e.key);
    const key = digit ? e.code.slice(5) : e.key.length === 1 ? e.key.toUpperCase() : e.key;
    if (from.closest(CHOICE) && key.startsWith("Arrow")) return;
    const name = this.data.keys[(e.shiftKey && !symbol ? "Shift+" : "") + key];
    if (!name) return;
    e.preventDefault();
    e.stopImmediatePropagation();
    if (e.repeat && !key.startsWith("Arrow")) return;
    this.push({ do: name });
  }

  click(e) {
    const row = e.target instanceof Element && e.target.closest("[data-command]");
    if (row && this.data?.names[row.dataset.command]) { this.push({ do: row.dataset.command }); return; }
    // Who answered with the mouse goes on with the page's keys.
    if (e.detail && e.target instanceof Element && e.target.closest(".st-key-findings [role='radiogroup']")) setTimeout(() => document.activeElement?.blur(), 0);
    const button = e.target instanceof Element && e.target.closest("button"), box = button && button.closest("[class*='st-key-']");
    if (!box || button.disabled || !this.data) return;
    const name = this.data.buttons[[...box.classList].find((c) => c.startsWith("st-key-"))?.slice(7)];
    if (!name) return;
    e.preventDefault();
    e.stopImmediatePropagation();
    button.focus({ preventScroll: true });
    this.push({ do: name });
  }

  push(command) {
    if (command.do !== "note") window.dispatchEvent(new CustomEvent("vitdomains:flush"));
    const { item, seen } = this.shown, about = this.data.names[command.do] ?? {};
    const made = { item, seen, ...command, n: ++this.number, page: this.page, seconds: (Date.now() - this.since) / 1000 };
    this.queue.push(made);
    if (about.advances && this.ahead.length) { made.advanced = true; this.show(this.ahead.shift(), true); }
    this.deliver();
  }

  deliver() {
    this.sent = Date.now();
    this.send({ queue: this.queue });
  }

  tell() {
    const bar = this.root.querySelector(".bar"), fresh = this.data.messages.filter((m) => m.number > this.read);
    if (!this.wired) { bar.querySelector("button").addEventListener("click", () => { bar.hidden = true; this.push({ do: "undo" }); }); this.wired = true; }
    if (!fresh.length) return;
    this.read = fresh.at(-1).number;
    bar.querySelector("span").textContent = fresh.map((m) => m.text).join(" ");
    bar.querySelector("button").hidden = !("undo" in this.data.names);
    bar.hidden = false;
    clearTimeout(this.hiding);
    this.hiding = setTimeout(() => { bar.hidden = true; }, SHOWN_FOR);
  }

  connection() {
    const app = document.querySelector("[data-testid='stApp']"), lost = this.root?.querySelector(".lost");
    const state = app?.dataset.testConnectionState;
    if (!lost || !state) return;
    lost.hidden = state === "CONNECTED";
    if (!lost.hidden) lost.textContent = "The server does not answer. What you saved is safe, and what you have begun is kept: wait, or start the server again; this page goes on by itself.";
  }
}

export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  window.vitdomainsCommands ??= new Commands();
  window.vitdomainsCommands.wired &&= window.vitdomainsCommands.root === parentElement;
  window.vitdomainsCommands.update(parentElement, data, (act) => setTriggerValue("act", act));
}
