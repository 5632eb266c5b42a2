// Contact sheet: a grid of tiles, each a button. Arrows move among them, Enter or a click chooses. Talks by one trigger, `act`.

const BADGES = { done: "✓", other: "→", none: "?" };

class Sheet {
  constructor(root) {
    this.root = root.querySelector("[data-sheet]");
    this.off = new AbortController();
    const { signal } = this.off;
    this.root.addEventListener("click", (e) => { const tile = e.target.closest("button"); if (tile) this.choose(tile); }, { signal });
    this.root.addEventListener("keydown", (e) => this.key(e), { signal });
    window.addEventListener("vitdomains:shown", () => { if (this.data) this.update(this.data, this.act); }, { signal });
  }

  // The time tells one choice from the next of the same tile.
  choose(tile) {
    const chosen = this.data.tiles.find((x) => x.item === tile.dataset.item);
    window.dispatchEvent(new CustomEvent("vitdomains:chosen", { detail: { item: chosen.item, seen: chosen.seen } }));
    this.act({ item: chosen.item, at: Date.now() });
  }

  // Buttons are used again by place: a page of tiles is drawn without taking the focus away.
  update(data, act) {
    this.act = act;
    this.data = data;
    const current = window.vitdomains?.early?.item ?? data.current;
    while (this.root.children.length > data.tiles.length) this.root.lastElementChild.remove();
    while (this.root.children.length < data.tiles.length) this.root.append(this.made());
    data.tiles.forEach((tile, i) => this.fill(this.root.children[i], tile, tile.item === current));
    this.root.dataset.current = current;
    this.root.dataset.tiles = data.tiles.length;
  }

  made() {
    const button = document.createElement("button");
    button.type = "button";
    button.innerHTML = '<span class="frame" style="display:block"><img alt="" draggable="false"></span><span class="badge"></span><span class="caption"></span>';
    return button;
  }

  fill(button, tile, current) {
    const image = button.querySelector("img"), badge = button.querySelector(".badge");
    button.dataset.item = tile.item;
    button.dataset.state = tile.state;
    button.title = tile.title;
    button.setAttribute("aria-label", tile.title);
    button.setAttribute("aria-current", current);
    button.tabIndex = current ? 0 : -1;
    button.classList.toggle("near", tile.near);
    image.hidden = !tile.url;
    if (!tile.url) image.removeAttribute("src"); // a tile that cannot be read shows no other tile's picture
    else if (image.getAttribute("src") !== tile.url) image.src = tile.url;
    badge.className = `badge ${tile.state}`;
    badge.textContent = BADGES[tile.state] ?? "";
    button.querySelector(".caption").textContent = tile.caption;
  }

  // Left and right are the app's own; up and down move by a row, once the sheet has the focus.
  key(e) {
    const tiles = [...this.root.children], at = tiles.indexOf(e.target.closest("button"));
    if (at < 0 || e.ctrlKey || e.metaKey || e.altKey || e.shiftKey) return;
    const columns = tiles.filter((tile) => tile.offsetTop === tiles[0].offsetTop).length;
    const step = { ArrowUp: -columns, ArrowDown: columns }[e.key];
    if (step === undefined) return;
    e.preventDefault();
    e.stopPropagation();
    const next = tiles[at + step];
    if (next) { next.focus(); this.choose(next); }
  }
}

const sheets = new WeakMap();

export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  let sheet = sheets.get(parentElement);
  if (!sheet) { sheet = new Sheet(parentElement); sheets.set(parentElement, sheet); }
  sheet.update(data, (act) => setTriggerValue("act", act));
  return () => { sheet.off.abort(); sheets.delete(parentElement); };
}
