// A list whose rows are opened by a click, or with the keyboard: Tab to it, up and down, Enter. Talks by one trigger, `act`.

const made = (name, fields = {}) => Object.assign(document.createElement(name), fields);

class Rows {
  constructor(root) {
    this.root = root.querySelector("[data-rows]");
    this.head = this.root.querySelector("thead tr");
    this.body = this.root.querySelector("tbody");
    this.off = new AbortController();
    const { signal } = this.off;
    this.body.addEventListener("click", (e) => this.choose(e.target.closest("tr")), { signal });
    this.body.addEventListener("keydown", (e) => this.key(e), { signal });
  }

  // The time tells one choice from the next of the same row.
  choose(row) { if (row) this.act({ item: row.dataset.item, at: Date.now() }); }

  update(data, act) {
    this.act = act;
    const said = JSON.stringify(data);
    if (said === this.said) return; // drawn already: the focus stays where it is
    this.said = said;
    this.root.style.maxHeight = `${data.height}px`;
    this.root.querySelector("table").setAttribute("aria-label", data.label);
    this.head.replaceChildren(...data.columns.map((c) => {
      const cell = made("th", { scope: "col", textContent: c.title, className: c.number && !c.bar ? "number" : "" });
      if (c.note) cell.title = c.note;
      return cell;
    }));
    const focus = this.body.contains(this.root.getRootNode().activeElement);
    this.body.replaceChildren(...data.rows.map((row, i) => this.row(data, row, i)));
    if (focus) this.body.querySelector("button")?.focus();
    this.root.scrollTop = 0;
    this.root.dataset.count = data.rows.length;
  }

  row(data, values, i) {
    const row = made("tr");
    row.dataset.item = data.items[i];
    row.append(...values.map((text, k) => {
      const { bar, number } = data.columns[k];
      const cell = made("td", { title: text, className: number && !bar ? "number" : "" });
      if (bar && text) {
        const gauge = made("span", { className: "bar" });
        gauge.append(made("i"));
        gauge.firstChild.style.width = `${100 * Number(text)}%`;
        cell.append(gauge);
      }
      if (k) cell.append(text);
      else cell.append(made("button", { type: "button", textContent: text, tabIndex: i ? -1 : 0, ariaLabel: `Open ${values.slice(0, 3).join(" ")}` }));
      return cell;
    }));
    return row;
  }

  key(e) {
    const rows = [...this.body.children], at = rows.indexOf(e.target.closest("tr"));
    const step = { ArrowUp: -1, ArrowDown: 1 }[e.key];
    if (at < 0 || !step || e.ctrlKey || e.metaKey || e.altKey || e.shiftKey) return;
    e.preventDefault();
    e.stopPropagation();
    const next = rows[at + step]?.querySelector("button");
    if (!next) return;
    rows[at].querySelector("button").tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

const lists = new WeakMap();

export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  let list = lists.get(parentElement);
  if (!list) { list = new Rows(parentElement); lists.set(parentElement, list); }
  list.update(data, (act) => setTriggerValue("act", act));
  return () => { list.off.abort(); lists.delete(parentElement); };
}
