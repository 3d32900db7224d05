// Elements. Text is set as text and never parsed, so a tag in a record's text stays text.

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter(child => child !== null));
  return made;
}

function byId(id) {
  return document.getElementById(id);
}

function selectOf(label, options, chosen, onchange) {
  const items = options.map(([value, text]) => el("option", {value, selected: value === chosen}, text));
  return el("label", {class: "choice"}, el("span", {}, label), el("select", {onchange}, ...items));
}

// A sentence whose commands stand between backticks.
function withCode(sentence) {
  return sentence.split("`").map((part, place) => (place % 2 ? el("code", {}, part) : part));
}
