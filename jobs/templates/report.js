"use strict";
// The gallery. Everything that comes from tables is put into the page as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const CHUNK = 60; // cards made at once: more follow as the reader comes near the end
const [cards, search, order, measure, references, found, end] =
  ["cards", "search", "order", "measure", "references", "found", "end"].map(id => document.getElementById(id));

let listed = []; // the images that were found, in order
let shown = 0;
const nearEnd = new IntersectionObserver(entries => entries.at(-1).isIntersecting && more(), { rootMargin: "1500px" });

for (const image of data.images)
  image.text = [image.id, image.caption, image.status, image.message, ...image.references].join("\n").toLowerCase();

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

const byMeasure = sign => (a, b) => {
  const [x, y] = [a, b].map(image => image.measures[measure.value] ?? null);
  if (x === null || y === null) return (x === null) - (y === null); // what has no score stands last
  return sign * (x - y);
};
const failed = image => image.status !== "ok";
const orders = {
  worst: list => list.sort(byMeasure(1)),
  best: list => list.sort(byMeasure(-1)),
  failed: list => list.sort((a, b) => failed(b) - failed(a) || byMeasure(1)(a, b)),
  name: list => list.sort((a, b) => ((a.id ?? "") < (b.id ?? "") ? -1 : 1)),
  random: list => {
    for (let last = list.length - 1; last > 0; last--) {
      const other = Math.floor(Math.random() * (last + 1));
      [list[last], list[other]] = [list[other], list[last]];
    }
    return list;
  },
};

function list() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  listed = orders[order.value](data.images.filter(image => words.every(word => image.text.includes(word))));
  cards.replaceChildren();
  shown = 0;
  more();
  if (cards.getBoundingClientRect().top < 0) document.getElementById("gallery").scrollIntoView({ behavior: "instant" });
  found.textContent = `${listed.length.toLocaleString("en")} of ${data.images.length.toLocaleString("en")} images`;
}

function more() {
  const next = listed.slice(shown, shown + CHUNK);
  cards.append(...next.map(card));
  shown += next.length;
  // Watched anew, or an end that stays near would not be told of again.
  nearEnd.unobserve(end);
  if (shown < listed.length) nearEnd.observe(end);
}

function card(image) {
  const made = element("li", "card", picture(image));
  made.tabIndex = 0;
  made.image = image;
  if (failed(image)) {
    made.append(element("p", "caption failed", `${image.status}: ${image.message ?? ""}`));
  } else {
    made.append(element("p", "caption", ...(image.words ? spans(image.words) : [image.caption ?? ""])));
    const figures = data.measures.flatMap((name, at) => {
      const value = image.measures[at];
      return value === null ? [] : [element("div", "", element("dt", "", name), element("dd", "", value.toFixed(1)))];
    });
    if (figures.length) made.append(element("dl", "measures", ...figures));
  }
  if (image.references.length) made.append(element("ul", "", ...image.references.map(text => element("li", "", text))));
  made.append(element("p", "name", image.id ?? "(no image_id)"));
  return made;
}

function picture(image) {
  if (!image.jpeg) return element("div", "picture", "no image");
  const img = element("img");
  img.alt = image.caption ?? "";
  img.decoding = "async";
  img.loading = "lazy";
  img.src = `data:image/jpeg;base64,${image.jpeg}`;
  const frame = element("div", "frame", img);
  frame.style.setProperty("--ratio", image.width / image.height);
  return element("div", "picture", frame);
}

function spans(words) {
  return words.flatMap((word, at) => {
    const span = element("span", "", word);
    span.dataset.word = at;
    return at === 0 || /^('|n't$)/.test(word) ? [span] : [" ", span];
  });
}

// Attention: what the model did not look at, as it said a word, goes dark.

function look(card, word) {
  for (const old of document.querySelectorAll(".looking, canvas")) old.matches("canvas") ? old.remove() : old.classList.remove("looking");
  const image = card?.image;
  if (word === null || !image?.words || !image.jpeg) return;
  card.querySelector(`[data-word="${word}"]`).classList.add("looking");
  const bytes = atob(image.attention);
  const cells = bytes.length / image.words.length;
  const canvas = element("canvas");
  canvas.setAttribute("aria-hidden", "true");
  canvas.width = canvas.height = Math.round(Math.sqrt(cells));
  const pixels = new ImageData(canvas.width, canvas.height);
  for (let cell = 0; cell < cells; cell++) pixels.data[4 * cell + 3] = 215 * (1 - bytes.charCodeAt(word * cells + cell) / 255);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  card.querySelector(".frame").append(canvas);
}

for (const kind of ["pointerover", "click"])
  cards.addEventListener(kind, event => {
    const word = event.target.closest("[data-word]");
    if (word) look(word.closest(".card"), Number(word.dataset.word));
  });
cards.addEventListener("pointerout", event => {
  if (event.pointerType === "mouse" && event.target.closest("[data-word]")) look(null, null);
});

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select")) {
    if (event.key !== "Escape") return;
    event.target.blur();
    event.preventDefault(); // or a browser would empty the search
    return;
  }
  const here = document.activeElement.closest(".card");
  if (event.key === "/") search.focus();
  else if (event.key === "j" || event.key === "k") {
    const next = here ? (event.key === "j" ? here.nextElementSibling : here.previousElementSibling) : cards.firstElementChild;
    next?.focus();
    look(null, null);
  } else if (here?.image.words && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
    const n = here.image.words.length;
    const now = here.querySelector(".looking")?.dataset.word;
    const step = event.key === "ArrowRight" ? 1 : -1;
    look(here, now === undefined ? (step > 0 ? 0 : n - 1) : (Number(now) + step + n) % n);
  } else return;
  event.preventDefault();
});

search.form.addEventListener("submit", event => event.preventDefault());
search.addEventListener("input", list);
order.addEventListener("change", list);
measure.addEventListener("change", list);
references?.addEventListener("change", () => cards.classList.toggle("without-references", !references.checked));

// A chart's marks name themselves to a pointer.
for (const mark of document.querySelectorAll(".chart path[aria-label]")) {
  const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
  title.textContent = mark.getAttribute("aria-label");
  mark.append(title);
}

list();
document.documentElement.dataset.ready = Math.round(performance.now());
