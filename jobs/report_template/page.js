"use strict";
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const body = byId("table").tBodies[0];
  const rows = [...body.rows];
  const text = new Map(rows.map((row) => [row, row.cells[0].textContent.trim().toLowerCase()]));

  function make(tag, className, content) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    for (const child of [content].flat()) if (child !== undefined) element.append(child);
    return element;
  }

  const bdi = (value) => make("bdi", "", value);

  function picture(url, alt) {
    const image = make("img");
    image.decoding = "async";
    image.alt = alt;
    image.src = url;
    return image;
  }

  function heat(name, each) {
    const figure = make("figure", "heat");
    const what = each.scale === "inferno" ? "Mean saliency of " : "Difference of the mean saliency of ";
    figure.append(picture(each.url, `${what}${name}, ${each.caption}`), make("figcaption", "", each.caption));
    return figure;
  }

  function frame(image) {
    const button = make("button", "frame");
    button.type = "button";
    button.style.maxWidth = `${Math.max(24, (420 * image.width) / image.height)}px`;  // tall ones are narrow
    button.setAttribute("aria-label", `Enlarge ${image.id}`);
    const layer = picture(image.layer, "");
    layer.className = "layer";
    const [left, top, width, height] = image.box.map((share) => `${share}%`);
    Object.assign(layer.style, { left, top, width, height });
    const shown = picture(image.url, `${image.id}, labelled ${image.label ?? "nothing"}, called ${image.called}`);
    shown.dataset.width = image.width;
    button.append(shown, layer);
    return button;
  }

  function photo(image) {
    const figure = make("figure", "photo small");
    figure.append(image.error === undefined ? frame(image) : make("div", "lost", bdi(image.error)));
    const caption = make("figcaption", "", bdi(image.id));
    if (image.label !== null) caption.append(make("br"), "labelled ", bdi(image.label));
    caption.append(make("br"), "called ", bdi(image.called), ` (${image.probability}), agreement ${image.agreement}`);
    figure.append(caption);
    return figure;
  }

  function block(title, content) {
    const part = make("div");
    part.append(make("h4", "", title), content);
    return part;
  }

  function list(items) {
    const element = make("ul");
    for (const item of items) element.append(make("li", "", item));
    return element;
  }

  function confused(title, pairs, total) {
    const items = pairs.map(([name, count]) => [bdi(name), `: ${count} (${((100 * count) / total).toFixed(1)}%)`]);
    return block(title, items.length ? list(items) : make("p", "quiet", "none"));
  }

  function photos(title, images) {
    return block(title, make("div", "photos", images.map(photo)));
  }

  function detail(about) {
    const parts = make("div");
    parts.append(make("div", "heats", about.heat.map((each) => heat(about.name, each))));
    if (about.most.length) parts.append(photos("Maps most like the class's mean", about.most));
    if (about.least.length) parts.append(photos("Maps least like it", about.least));
    const columns = make("div", "columns");
    if (about.images) {
      columns.append(confused(`Of ${about.images} images labelled so, ${about.right} are right; others are called`, about.taken_for, about.images));
    }
    if (about.called) {
      columns.append(confused(`Of ${about.called} images called so, these are labelled otherwise`, about.taken_from, about.called));
    }
    if (about.numbers.length) {
      columns.append(block("Means over its maps", list(about.numbers.map(([name, value]) => `${name}: ${value}`))));
    }
    if (about.statistics.length) {
      columns.append(block("Its maps, beside other classes' (audit)", list(about.statistics.map(([name, own, others]) => `${name}: ${own}, others ${others}`))));
    }
    if (about.cues.length) {
      columns.append(block("What the audit says", list(about.cues.map(([verdict, reason]) => `${verdict}: ${reason}`))));
    }
    parts.append(columns);
    return parts;
  }

  function close(row) {
    row.querySelector(".open").setAttribute("aria-expanded", "false");
    if (row.nextElementSibling?.classList.contains("detail")) row.nextElementSibling.remove();
  }

  function toggle(row) {
    const button = row.querySelector(".open");
    if (button.getAttribute("aria-expanded") === "true") return close(row);
    button.setAttribute("aria-expanded", "true");
    const about = JSON.parse(byId(`class-${row.dataset.target}`).textContent);
    const cell = make("td", "", detail(about));
    cell.colSpan = row.cells.length;
    row.after(make("tr", "detail", cell));
  }

  function filter() {
    const wanted = byId("search").value.trim().toLowerCase();
    const slug = byId("verdict").value;
    let shown = 0;
    for (const row of rows) {
      const fits = text.get(row).includes(wanted) && (!slug || row.dataset.slug === slug);
      row.hidden = !fits;
      if (!fits) close(row);
      shown += fits;
    }
    byId("count").textContent = `${shown} of ${rows.length} classes`;
  }

  function sort(head) {
    const key = head.dataset.key;
    const descending = head.ariaSort === "ascending" || (head.ariaSort === "none" && !["name", "order"].includes(key));
    for (const other of head.parentElement.cells) if (other.dataset.key) other.ariaSort = "none";
    head.ariaSort = descending ? "descending" : "ascending";
    const sign = descending ? -1 : 1;
    const compare = key === "name"
      ? (a, b) => sign * text.get(a).localeCompare(text.get(b))
      : (a, b) => {
        const [one, other] = [a.dataset[key], b.dataset[key]];
        if (one === undefined || other === undefined) return (one === undefined) - (other === undefined);
        return sign * (one - other);
      };
    rows.sort(compare);
    rows.forEach(close);
    body.append(...rows);
  }

  function step(by) {
    const visible = rows.filter((row) => !row.hidden).map((row) => row.querySelector(".open"));
    const at = visible.indexOf(document.activeElement);
    const next = at < 0 ? (by > 0 ? 0 : visible.length - 1) : Math.min(Math.max(at + by, 0), visible.length - 1);
    visible[next]?.focus();
  }

  function enlarge(button) {
    const large = byId("large");
    const copy = make("div", "frame");
    for (const image of button.querySelectorAll("img")) copy.append(image.cloneNode());
    const width = Math.max(button.querySelector("img").naturalWidth, 1);
    copy.style.width = `${width}px`;
    large.querySelector("div").replaceChildren(copy, make("p", "", button.querySelector("img").alt));
    large.showModal();
  }

  function layers(on) {
    byId("layers").checked = on;
    root.classList.toggle("maps-off", !on);
  }

  body.addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (button) toggle(button.closest("tr"));
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.frame");
    if (button) enlarge(button);
  });
  byId("table").tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th[data-key]");
    if (head) sort(head);
  });
  byId("search").addEventListener("input", filter);
  byId("verdict").addEventListener("change", filter);
  byId("layers").addEventListener("change", (event) => layers(event.target.checked));
  byId("theme").addEventListener("change", (event) => {
    if (event.target.value) root.dataset.theme = event.target.value;
    else delete root.dataset.theme;
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "Escape" && event.target === byId("search")) {
      event.target.value = "";
      filter();
    }
    if (typing || !byId("keys").checked || event.ctrlKey || event.metaKey || event.altKey || byId("large").open) return;
    const actions = {
      "/": () => byId("search").focus(),
      j: () => step(1),
      k: () => step(-1),
      o: () => layers(!byId("layers").checked),
    };
    if (actions[event.key]) {
      event.preventDefault();
      actions[event.key]();
    }
  });
  filter();
})();
