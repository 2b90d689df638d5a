"use strict";
(() => {
  const HIGHEST = 16e6; // pixels: browsers do not lay out taller elements exactly
  const COLUMNS = 60; // texts of the grid that are shown at a time
  const SHADES = 8;
  const LISTED = 10; // best matches in the details

  const read = (id) => {
    const element = document.getElementById(id);
    const value = JSON.parse(element.textContent);
    element.remove();
    return value;
  };
  const setup = read("setup");
  const { images, texts } = read("names");
  const rows = read("rows");
  const root = document.getElementById("explorer");
  const kinds = setup.columns.map((column) => column.kind);
  const SCORE = setup.score;
  const LIKELY = setup.grid && kinds[SCORE + 1] === "number" ? SCORE + 1 : -1;
  const TEXT = SCORE - 1;
  const scored = SCORE > 0;

  // Elements. Text is only ever set as text.
  const make = (name, properties = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (key in element && key !== "list") element[key] = value;
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  };
  const counted = (count) => count.toLocaleString("en");
  const bdi = (text) => make("bdi", {}, text);
  const hidden = (text) => make("span", { className: "hidden" }, text);
  const shown = (value, digits) => (value === null ? "\u2013" : value.toFixed(digits));

  // Names are shown without the folder that all of them are in.
  const folder = images.length < 2 ? "" : images.reduce((shared, name) => {
    let length = 0;
    while (length < shared.length && shared[length] === name[length]) length += 1;
    return shared.slice(0, length);
  }).replace(/[^/]*$/, "");
  const short = (image) => images[image].slice(folder.length);

  // Thumbnails come after the script; a block of them is parsed when one is shown.
  const blocks = new Map();
  const picture = (image) => {
    const at = Math.floor(image / setup.block);
    if (!blocks.has(at)) {
      const element = document.getElementById(`pictures-${at}`);
      if (!element) return null;
      blocks.set(at, JSON.parse(element.textContent));
      element.remove();
    }
    return blocks.get(at)[image % setup.block];
  };
  const thumbnail = (image, alt = "") => {
    const data = image === null ? null : picture(image);
    if (!data) return make("span", { className: "no-picture", title: "no picture" });
    return make("img", { src: `data:image/jpeg;base64,${data}`, alt, decoding: "async" });
  };

  // What is best, and ranks.
  const byImage = images.map(() => []);
  const byText = texts.map(() => []);
  const best = new Set();
  if (scored) {
    rows.forEach((row, number) => {
      if (row[SCORE] === null || row[0] === null) return;
      byImage[row[0]].push(number);
      byText[row[TEXT]].push(number);
    });
    let groups = byImage.filter((group) => group.length > 1);
    if (!groups.length) groups = byText.length === 1 && byText[0].length > 1 ? byText : [];
    for (const group of groups) {
      const highest = group.reduce((most, it) => Math.max(most, rows[it][SCORE]), -Infinity);
      for (const number of group) if (rows[number][SCORE] === highest) best.add(number);
    }
    for (const group of [...byImage, ...byText]) {
      group.sort((a, b) => rows[b][SCORE] - rows[a][SCORE] || a - b);
    }
  }
  const rank = (group, number) =>
    1 + group.findIndex((it) => rows[it][SCORE] === rows[number][SCORE]);
  let cells = new Map(); // the grid's: number of a row by image and text
  if (setup.grid) {
    rows.forEach((row, number) => cells.set(row[0] * texts.length + row[TEXT], number));
  }

  const state = {
    grid: setup.grid,
    value: SCORE,
    image: "",
    text: "",
    least: null,
    choice: "",
    sort: null, // {key, down}
    first: 0, // the grid's first text
    active: [0, 0], // row and column; row -1 is the head
  };
  let order = []; // images of the grid or numbers of rows, as they are shown
  let columns = []; // {name, key, kind, digits}

  // Controls.
  const names = texts.length ? "Search texts" : "Search";
  const label = (text, element) => make("label", {}, make("span", {}, text), element);
  const later = (run, milliseconds = 150) => {
    let waiting = 0;
    return () => {
      clearTimeout(waiting);
      waiting = setTimeout(run, milliseconds);
    };
  };
  const changed = () => {
    state.image = imageField.value.trim().toLowerCase();
    state.text = textField.value.trim().toLowerCase();
    state.least = leastField && leastField.value !== "" ? Number(leastField.value) : null;
    state.choice = choiceField ? choiceField.value : "";
    state.first = 0;
    state.active = [0, Math.min(state.active[1], columns.length - 1)];
    apply();
  };
  const search = (text) =>
    label(text, make("input", { type: "search", autocomplete: "off", oninput: later(changed) }));
  const field = (of) => of.querySelector("input, select");
  const imageLabel = search("Search images");
  const textLabel = search(names);
  const imageField = field(imageLabel);
  const textField = field(textLabel);
  const option = (value, text) => make("option", { value }, text);
  let leastField = null;
  let choiceField = null;
  let choiceLabel = null;
  let valueLabel = null;
  const controls = make("div", { className: "controls", role: "search", "aria-label": setup.label });
  if (setup.grid) {
    const view = (grid, text) =>
      make("button", {
        type: "button",
        "aria-pressed": String(state.grid === grid),
        onclick: (event) => {
          state.grid = grid;
          for (const it of event.target.parentElement.children) {
            it.setAttribute("aria-pressed", String(it === event.target));
          }
          state.sort = null;
          state.active = [0, 0];
          changed();
        },
      }, text);
    controls.append(
      make("div", { className: "views", role: "group", "aria-label": "View" },
        view(true, "Grid"), view(false, "List")),
    );
  }
  controls.append(imageLabel);
  if (texts.length) controls.append(textLabel);
  if (setup.grid && LIKELY >= 0) {
    const value = make("select", {
      onchange: () => {
        state.value = Number(value.value);
        changed();
      },
    }, option(SCORE, setup.columns[SCORE].name), option(LIKELY, setup.columns[LIKELY].name));
    valueLabel = label("Show", value);
    controls.append(valueLabel);
  }
  if (setup.least >= 0) {
    leastField = make("input", {
      type: "number", step: "any", min: "0", inputMode: "decimal", oninput: later(changed),
    });
    controls.append(label(`${setup.columns[setup.least].name} at least`, leastField));
  }
  if (setup.choices.length) {
    choiceField = make("select", { onchange: changed }, option("", `all ${setup.unit}`),
      ...setup.choices.map((it, number) => option(number, it.name)));
    choiceLabel = label("Only", choiceField);
    controls.append(choiceLabel);
  }
  const before = make("button", { type: "button", onclick: () => turn(-COLUMNS) }, "Previous texts");
  const after = make("button", { type: "button", onclick: () => turn(COLUMNS) }, "Next texts");
  const pages = make("div", { className: "pages", hidden: true }, before, after);
  const turn = (by) => {
    state.first += by;
    scroller.scrollLeft = 0;
    apply();
  };
  const status = make("p", { className: "status", role: "status", "aria-live": "polite" });

  // The table, of which the rows in sight and a few more are there.
  const head = make("thead");
  const above = make("tbody", { className: "spacer", "aria-hidden": "true" },
    make("tr", {}, make("td")));
  const body = make("tbody");
  const below = above.cloneNode(true);
  const table = make("table", { className: "explorer", role: "grid", "aria-label": setup.label },
    head, above, body, below);
  const scroller = make("div", { className: "scroller", tabIndex: -1 }, table);
  const help = make("p", { className: "help" },
    "Arrow keys move between cells, Enter opens the details of a cell and sorts by a heading.");
  root.append(controls, status, pages, scroller, help);

  let height = 0; // of a row
  let drawn = new Map(); // rows that are there
  let most = Infinity; // rows that fit into the tallest element

  const matches = (text, sought) => !sought || text.toLowerCase().includes(sought);
  const least = (number) =>
    state.least === null || (rows[number][leastColumn()] ?? -Infinity) >= state.least;
  const leastColumn = () => (state.grid ? state.value : setup.least);
  const seekable = (row) =>
    setup.columns.map((column, at) => {
      if (column.kind === "text") return row[at] === null ? "" : texts[row[at]];
      return column.kind === "words" ? row[at] ?? "" : "";
    }).join("\n");
  const chosen = (number) => {
    if (state.choice === "") return true;
    const { column, value } = setup.choices[state.choice];
    if (column < 0) return best.has(number);
    const there = rows[number][column];
    return value === null ? there !== null : there === value;
  };

  const apply = () => {
    measure();
    const seen = images.map((name) => matches(name, state.image));
    if (state.grid) {
      const fitting = texts.map((_, text) => text).filter((it) => matches(texts[it], state.text));
      state.first = Math.max(0, Math.min(state.first, fitting.length - 1));
      state.first -= state.first % COLUMNS;
      const some = fitting.slice(state.first, state.first + COLUMNS);
      columns = [{ name: setup.columns[0].name, key: -1, kind: "image" },
        ...some.map((text) => ({ name: texts[text], key: text, kind: "number" }))];
      const digits = setup.columns[state.value].digits;
      columns.forEach((column) => (column.digits = digits));
      order = images.map((_, image) => image).filter((image) =>
        seen[image] && byImage[image].length && (state.least === null || fitting.some((text) => {
          const number = cells.get(image * texts.length + text);
          return number !== undefined && least(number);
        })));
      pages.hidden = fitting.length <= COLUMNS;
      before.disabled = state.first === 0;
      after.disabled = state.first + COLUMNS >= fitting.length;
      say(order.length, images.length, "images",
        `, texts ${fitting.length ? state.first + 1 : 0} to ${state.first + some.length} of ${
          fitting.length}${fitting.length < texts.length ? " found" : ""}`);
    } else {
      columns = setup.columns.map((column, at) => ({ ...column, key: at }));
      order = rows.map((_, number) => number).filter((number) => {
        const row = rows[number];
        return (row[0] === null ? !state.image : seen[row[0]]) && matches(seekable(row), state.text)
          && (state.least === null || least(number)) && chosen(number);
      });
      pages.hidden = true;
      say(order.length, rows.length, setup.unit, "");
    }
    sort();
    if (choiceLabel) choiceLabel.hidden = state.grid;
    if (valueLabel) valueLabel.hidden = !state.grid;
    drawHead();
    redraw();
  };

  const sort = () => {
    if (!state.sort) return;
    const { key, down } = state.sort;
    const value = state.grid
      ? (image) => {
        if (key < 0) return images[image];
        const number = cells.get(image * texts.length + key);
        return number === undefined ? null : rows[number][state.value];
      }
      : (number) => {
        const it = rows[number][key];
        if (it === null) return null;
        return kinds[key] === "image" ? images[it] : kinds[key] === "text" ? texts[it] : it;
      };
    const collator = new Intl.Collator(undefined, { numeric: true });
    const compare = (a, b) => (typeof a === "string" ? collator.compare(a, b) : a - b);
    const keyed = order.map((it, place) => [value(it), place, it]);
    keyed.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j; // always last
      return (down ? compare(b, a) : compare(a, b)) || i - j;
    });
    order = keyed.map((it) => it[2]);
  };

  const say = (count, all, unit, rest) => {
    const sorted = state.sort && columns.find((it) => it.key === state.sort.key);
    const numbers = sorted && sorted.kind === "number";
    const way = !sorted ? "" : state.sort.down
      ? numbers ? ", highest first" : ", backwards" : numbers ? ", lowest first" : "";
    const cut = count > most ? ` Only the first ${most} can be scrolled to: filter them.` : "";
    const many = count === all ? counted(all) : `${counted(count)} of ${counted(all)}`;
    const noun = all === 1 ? unit.replace(/s$/, "") : unit;
    status.textContent = `${many} ${noun}${rest}${
      sorted ? `, sorted by ${sorted.name}${way}` : ""}.${cut}`;
  };

  const sortBy = (column) => {
    const first = column.kind === "number"; // numbers from the highest
    const now = state.sort;
    if (!now || now.key !== column.key) state.sort = { key: column.key, down: first };
    else if (now.down === first) state.sort = { key: column.key, down: !first };
    else state.sort = null;
    scroller.scrollTop = 0;
    apply();
    focusActive();
  };

  const measure = () => {
    root.classList.toggle("few", (state.grid ? images : rows).length <= 40);
    table.classList.toggle("grid", state.grid);
    height = parseFloat(getComputedStyle(root).getPropertyValue("--row"));
    most = Math.floor(HIGHEST / height);
  };

  const drawHead = () => {
    const row = make("tr", { "aria-rowindex": "1" });
    columns.forEach((column, at) => {
      const sorted = state.sort && state.sort.key === column.key;
      const button = make("button", {
        type: "button", tabIndex: -1, title: column.name, onclick: () => {
          state.active = [-1, at];
          sortBy(column);
        },
      }, make("span", {}, bdi(column.name)));
      row.append(make("th", {
        scope: "col", className: column.kind, "aria-colindex": at + 1,
        "aria-sort": sorted ? (state.sort.down ? "descending" : "ascending") : "none",
      }, button));
    });
    head.replaceChildren(row);
    table.setAttribute("aria-rowcount", Math.min(order.length, most) + 1);
    table.setAttribute("aria-colcount", columns.length);
  };

  const imageContent = (image) =>
    make("div", { className: "picture" }, thumbnail(image),
      make("span", { className: "name" }, bdi(image === null ? "no image" : short(image))));

  const drawRow = (place) => {
    const row = make("tr", { "aria-rowindex": place + 2 });
    const of = order[place];
    // A text is shaded among those of its image, a lone text among all images; best first.
    const among = !state.grid ? [] : texts.length > 1 ? byImage[of] : byText[0];
    const [high, low] = among.length
      ? [rows[among[0]][SCORE], rows[among[among.length - 1]][SCORE]] : [0, 0];
    columns.forEach((column, at) => {
      const properties = { "aria-colindex": at + 1, className: column.kind };
      if (column.kind === "image") {
        const image = state.grid ? of : rows[of][column.key];
        const title = image === null ? "" : images[image];
        row.append(at > 0 ? make("td", { ...properties, title }, image === null ? "" :
          imageContent(image)) : make("th", { ...properties, title, scope: "row" },
          imageContent(image)));
        return;
      }
      const number = state.grid ? cells.get(of * texts.length + column.key) : of;
      const value = number === undefined ? null
        : rows[number][state.grid ? state.value : column.key];
      const cell = document.createElement("td"); // the most frequent element: made by hand
      cell.setAttribute("aria-colindex", at + 1);
      if (column.kind === "number") {
        let kind = "number";
        if (best.has(number) && (state.grid || column.key === SCORE)) {
          cell.append(make("span", { className: "star", "aria-hidden": "true" }, "\u2605 "),
            hidden("best: "));
          kind += " best";
        }
        cell.append(shown(value, column.digits));
        if (value === null) cell.title = "no score";
        if (state.grid && number !== undefined && rows[number][SCORE] !== null && high > low) {
          const share = (rows[number][SCORE] - low) / (high - low);
          kind += ` shade-${Math.round(share * SHADES)}`;
        }
        if (state.grid && number !== undefined && !least(number)) kind += " below";
        cell.className = kind;
      } else {
        cell.className = column.kind;
        const text = value === null ? "" : column.kind === "text" ? texts[value] : value;
        cell.append(make("div", { className: "clamp" }, bdi(text)));
        cell.title = text;
      }
      row.append(cell);
    });
    row.addEventListener("click", (event) => {
      const cell = event.target.closest("td, th");
      if (!cell) return;
      state.active = [place, [...row.children].indexOf(cell)];
      focusActive();
      open();
    });
    return row;
  };

  const redraw = () => {
    drawn.clear();
    body.replaceChildren();
    draw();
  };

  const draw = () => {
    const count = Math.min(order.length, most);
    const top = Math.max(0, scroller.scrollTop);
    const inSight = Math.ceil(Math.max(scroller.clientHeight, 0.76 * innerHeight) / height);
    const from = Math.max(0, Math.min(count - 1, Math.floor(top / height) - 2));
    const to = Math.min(count, from + inSight + 5);
    const focused = scroller.contains(document.activeElement) && body.contains(document.activeElement);
    for (const [place, row] of drawn) {
      if (place < from || place >= to) {
        if (focused && row.contains(document.activeElement)) scroller.focus({ preventScroll: true });
        row.remove();
        drawn.delete(place);
      }
    }
    let next = body.firstChild;
    for (let place = from; place < to; place += 1) {
      if (drawn.has(place)) {
        next = drawn.get(place).nextSibling;
        continue;
      }
      const row = drawRow(place);
      body.insertBefore(row, next);
      drawn.set(place, row);
    }
    above.firstChild.firstChild.style.height = `${from * height}px`;
    below.firstChild.firstChild.style.height = `${Math.max(0, count - to) * height}px`;
    above.hidden = from === 0;
    below.hidden = to >= count;
    markActive();
  };

  const cellAt = (place, at) => {
    const row = place < 0 ? head.firstChild : drawn.get(place);
    const cell = row && row.children[at];
    return place < 0 && cell ? cell.firstChild : cell;
  };
  let marked = null; // the table's one stop of the Tab key
  const markActive = () => {
    if (marked) marked.tabIndex = -1;
    const [place, at] = state.active;
    const first = drawn.size ? Math.min(...drawn.keys()) : -1;
    const cell = cellAt(place, at) || cellAt(first, Math.min(at, columns.length - 1));
    if (cell) cell.tabIndex = 0;
    marked = cell;
  };
  const focusActive = () => {
    const [place, at] = state.active;
    if (place >= 0 && place < order.length) {
      const top = place * height;
      const room = scroller.clientHeight - head.offsetHeight;
      if (top < scroller.scrollTop) scroller.scrollTop = top;
      else if (top + height > scroller.scrollTop + room) scroller.scrollTop = top + height - room;
      draw();
    } else markActive();
    const cell = cellAt(place, at);
    if (!cell) return;
    cell.focus({ preventScroll: true });
    const side = cell.closest("td, th");
    const pinned = at > 0 ? table.querySelector("thead th").offsetWidth : 0;
    const left = side.offsetLeft - pinned;
    if (at > 0 && left < scroller.scrollLeft) scroller.scrollLeft = left;
    const right = side.offsetLeft + side.offsetWidth - scroller.clientWidth;
    if (at > 0 && right > scroller.scrollLeft) scroller.scrollLeft = right;
  };

  scroller.addEventListener("keydown", (event) => {
    let [place, at] = state.active;
    const last = Math.min(order.length, most) - 1;
    const page = Math.max(1, Math.floor(scroller.clientHeight / height) - 2);
    const moves = {
      ArrowDown: () => (place += 1),
      ArrowUp: () => (place -= 1),
      ArrowRight: () => (at += 1),
      ArrowLeft: () => (at -= 1),
      PageDown: () => (place = Math.max(place, 0) + page),
      PageUp: () => (place = Math.max(place < 0 ? -1 : 0, place - page)),
      Home: () => ([place, at] = event.ctrlKey ? [0, 0] : [place, 0]),
      End: () => ([place, at] = event.ctrlKey ? [last, columns.length - 1]
        : [place, columns.length - 1]),
    };
    if (event.altKey || event.metaKey) return;
    if (event.key === "Enter" && place >= 0) {
      event.preventDefault();
      open();
    } else if (event.key in moves) {
      event.preventDefault();
      moves[event.key]();
      state.active = [Math.max(-1, Math.min(place, last)),
        Math.max(0, Math.min(at, columns.length - 1))];
      focusActive();
    }
  });
  scroller.addEventListener("focusin", (event) => {
    const cell = event.target.closest("td, th");
    if (!cell) return;
    const row = cell.parentElement;
    const at = [...row.children].indexOf(cell);
    state.active = [row.parentElement === head ? -1 : Number(row.getAttribute("aria-rowindex")) - 2,
      at];
  });
  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
  scroller.addEventListener("scroll", soon, { passive: true });
  addEventListener("resize", soon);

  // Details of a row: each part is a function of its number that returns elements.
  const dialog = make("dialog", { "aria-labelledby": "details-title" });
  document.body.append(dialog);
  dialog.addEventListener("close", focusActive);
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  const ranking = (title, group, name, image) => {
    const items = group.slice(0, LISTED).map((number) =>
      make("li", {}, image ? thumbnail(rows[number][0]) : "",
        make("span", { className: "name" }, bdi(name(rows[number]))),
        make("span", { className: "number" }, shown(rows[number][SCORE],
          setup.columns[SCORE].digits))));
    const more = group.length > LISTED ? [make("p", {}, `and ${group.length - LISTED} more`)] : [];
    return [make("h3", {}, title), make("ol", {}, ...items), ...more];
  };
  const facts = (pairs) => {
    const list = make("dl", { className: "facts" });
    for (const [name, value] of pairs) {
      list.append(make("dt", {}, name), make("dd", {}, bdi(String(value))));
    }
    return list;
  };
  const parts = [
    (number) => {
      const row = rows[number];
      const pairs = setup.columns.flatMap((column, at) => {
        if (row[at] === null) return [];
        const value = column.kind === "image" ? images[row[at]]
          : column.kind === "text" ? texts[row[at]] : row[at];
        return [[column.name, value]];
      });
      if (scored && row[SCORE] !== null && row[0] !== null) {
        const [ofImage, ofText] = [byImage[row[0]], byText[row[TEXT]]];
        pairs.push(["Rank among the texts of this image",
          `${rank(ofImage, number)} of ${ofImage.length}`],
        ["Rank among the images of this text", `${rank(ofText, number)} of ${ofText.length}`]);
      }
      const more = row[setup.columns.length] ?? {};
      for (const [name, value] of Object.entries(more)) {
        pairs.push([name, Array.isArray(value) ? value.join("\n") : value]);
      }
      return [facts(pairs)];
    },
    (number) => {
      const row = rows[number];
      if (!scored || row[SCORE] === null || row[0] === null) return [];
      return [make("div", { className: "rankings" },
        make("div", {}, ...ranking("Texts of this image", byImage[row[0]],
          (it) => texts[it[TEXT]], false)),
        make("div", {}, ...ranking("Images of this text", byText[row[TEXT]],
          (it) => short(it[0]), true)))];
    },
  ];
  const open = () => {
    const [place, at] = state.active;
    if (place < 0 || place >= order.length) return;
    let number = order[place];
    if (state.grid) {
      const text = columns[at].key;
      number = at === 0 ? byImage[order[place]][0]
        : cells.get(order[place] * texts.length + text);
      if (number === undefined) return;
    }
    const image = rows[number][0];
    const title = make("h2", { id: "details-title" }, "Details of ",
      bdi(image === null ? "a row without an image" : images[image]));
    const close = make("button", { type: "button", className: "close",
      onclick: () => dialog.close() }, "Close");
    const picture = make("div", { className: "large" },
      thumbnail(image, image === null ? "" : images[image]));
    dialog.replaceChildren(make("div", { className: "details" }, title, close, picture,
      ...parts.flatMap((part) => part(number))));
    dialog.showModal();
    close.focus();
  };

  apply();
  document.addEventListener("DOMContentLoaded", redraw); // the thumbnails are there
})();
