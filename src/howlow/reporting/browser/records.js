// Every record's numbers: a table that is sorted, searched and turned page by page, so that 1,000 records stay quick.

const PAGE_ROWS = 50;

class RecordsTable {
  constructor({columns, groups, touched, rows}) {
    Object.assign(this, {columns, groups, touched, rows, sorted: null, isDown: false, page: 0, words: "", group: groups[0].name});
    const search = event => {
      this.words = event.target.value.toLowerCase();
      this.page = 0;
      this.draw();
    };
    byId("records-controls").replaceChildren(
      selectOf("Columns", groups.map(one => [one.name, one.name]), this.group, event => {
        this.group = event.target.value;
        this.draw();
      }),
      el("label", {class: "choice"}, el("span", {}, "Search"), el("input", {type: "search", id: "records-search", oninput: search})));
    this.draw();
  }

  get shownColumns() {
    return this.groups.find(one => one.name === this.group).columns;
  }

  get shownRows() {
    const words = this.words;
    const found = words ? this.rows.filter(row => row.text.includes(words)) : [...this.rows];
    return this.sorted === null ? found : found.sort((a, b) => this.compare(a, b));
  }

  // Absent values come last in either direction.
  compare(a, b) {
    const [x, y] = [a.values[this.sorted], b.values[this.sorted]];
    if (x === null || y === null) return (x === null) - (y === null);
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", {numeric: true});
    return this.isDown ? -order : order;
  }

  sortBy(place) {
    this.isDown = this.sorted === place ? !this.isDown : this.columns[place].better === "higher";
    this.sorted = place;
    this.page = 0;
    this.draw();
    byId(`sort-${place}`)?.focus();
  }

  draw() {
    const rows = this.shownRows, pages = Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
    this.page = Math.min(this.page, pages - 1);
    const start = this.page * PAGE_ROWS, shown = rows.slice(start, start + PAGE_ROWS);
    const head = el("tr", {}, ...this.shownColumns.map(place => this.header(place)), el("th", {scope: "col", class: "text"}, "warnings"));
    const body = shown.map(row => this.row(row));
    byId("records").replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
    const turn = (label, by) => el("button", {
      type: "button",
      disabled: this.page + by < 0 || this.page + by >= pages,
      onclick: () => { this.page += by; this.draw(); },
    }, label);
    const told = rows.length ? `${start + 1} to ${start + shown.length} of ${counted(rows.length, "record")}` : "no record";
    byId("records-pages").replaceChildren(turn("Previous", -1), el("span", {role: "status"}, told), turn("Next", 1));
  }

  header(place) {
    const column = this.columns[place], isSorted = this.sorted === place;
    const direction = isSorted ? (this.isDown ? "descending" : "ascending") : "none";
    const mark = isSorted ? (this.isDown ? " ▼" : " ▲") : "";
    const sort = {type: "button", id: `sort-${place}`, title: `${column.name}: ${column.meaning}`, onclick: () => this.sortBy(place)};
    const unit = column.shownUnit ? el("small", {}, column.shownUnit) : null;
    return el("th", {scope: "col", "aria-sort": direction, class: column.unit === "text" ? "text" : null},
      el("button", sort, column.label, mark), unit);
  }

  row(row) {
    const cells = this.shownColumns.map((place, index) => {
      const column = this.columns[place], value = row.values[place], text = quantity(value, column.unit);
      const notes = row.notes.filter(number => this.touched[number].includes(place)).map(noteLink);
      const kind = [column.unit === "text" ? "text" : "", value === null ? "absent" : ""].join(" ").trim();
      if (index === 0) return el("th", {scope: "row"}, text);
      return el("td", {class: kind || null}, text, ...notes);
    });
    return el("tr", {}, ...cells, el("td", {class: "text"}, ...row.notes.map(noteLink)));
  }
}

function noteLink(number) {
  return el("sup", {}, el("a", {href: `#warning-${number}`, "aria-label": `warning ${number}`}, String(number)));
}

function startRecords(data) {
  const rows = data.rows.map((values, place) => ({
    values,
    notes: data.notes[place],
    text: values.filter(value => typeof value === "string" || Number.isInteger(value)).join(" ").toLowerCase(),
  }));
  new RecordsTable({...data, rows});
}
