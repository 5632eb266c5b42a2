// Note: sent while it is typed, and kept by the browser until the server has it. It goes out as a command, before any that follows.

const WAIT = 400;
const keep = (place, text) => { try { localStorage.setItem(place, text); } catch { /* private mode: nothing is kept */ } };
const kept = (place) => { try { return localStorage.getItem(place); } catch { return null; } };
const forget = (place) => { try { localStorage.removeItem(place); } catch { /* nothing was kept */ } };

class Note {
  constructor(root) {
    this.field = root.querySelector("textarea");
    this.off = new AbortController();
    const signal = { signal: this.off.signal };
    this.field.addEventListener("input", () => { keep(this.place, this.field.value); clearTimeout(this.timer); this.timer = setTimeout(() => this.send(), WAIT); }, signal);
    this.field.addEventListener("blur", () => this.send(), signal);
    window.addEventListener("vitdomains:flush", () => this.send(), signal);
  }

  send() {
    clearTimeout(this.timer);
    if (this.field.value === this.sent) return;
    this.sent = this.field.value;
    window.dispatchEvent(new CustomEvent("vitdomains:command", { detail: { do: "note", item: this.item, seen: this.seen, text: this.sent } }));
  }

  update(data) {
    this.seen = data.seen;
    this.field.style.setProperty("--height", `${data.height}px`);
    const place = `vitdomains:note:${data.place}`;
    if (this.place !== place) {
      this.place = place;
      this.item = data.item;
      const before = kept(place);
      this.field.value = before ?? data.text;
      this.sent = data.text;
      this.send();
    } else if (this.field.getRootNode().activeElement !== this.field && this.field.value === this.sent) this.field.value = this.sent = data.text;
    if (kept(place) === data.text) forget(place);
  }
}

const notes = new WeakMap();

export default function (component) {
  const { parentElement, data } = component;
  let note = notes.get(parentElement);
  if (!note) { note = new Note(parentElement); notes.set(parentElement, note); }
  note.update(data);
  return () => { note.send(); note.off.abort(); notes.delete(parentElement); };
}
