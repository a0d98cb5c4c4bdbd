"use strict";

// A picture is sent once, and embedded; every change of the classes asks anew, and only the answer to
// the latest question is shown.
const at = (id) => document.getElementById(id);
const WAIT = 250; // milliseconds after a change, in which another may come
const TRIES = 5; // of a request that the server is too busy for
let file = null;
let picture = ""; // what the server calls the file
let latest = 0; // the number of the latest question
let timer = 0;
let limit = Infinity; // bytes

function say(text, isError = false) {
  at("notes").textContent = text;
  at("notes").classList.toggle("error", isError);
}

async function post(path, body) {
  for (let tries = 1; ; tries += 1) {
    const response = await fetch(path, { method: "POST", body }).catch(() => {
      throw new Error("The server does not answer. Is it still running?");
    });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    if (response.status !== 503 || tries === TRIES) {
      const error = answer.error || `The server is too busy, or broken (status ${response.status}).`;
      throw Object.assign(new Error(error), { status: response.status });
    }
    await new Promise((resolve) => setTimeout(resolve, 500 * tries));
  }
}

function element(kind, settings, ...children) {
  const made = Object.assign(document.createElement(kind), settings);
  made.append(...children);
  return made;
}

function show(guesses) {
  const items = guesses.map(({ name, probability, cosine }) => {
    const left = element("bdi", { textContent: name });
    const percent = `${(100 * probability).toFixed(1)} %`;
    const right = element("span", { textContent: percent, title: `cosine ${cosine.toFixed(3)}` });
    const bar = element("progress", { value: probability });
    bar.setAttribute("aria-hidden", "true"); // it says again what the row says
    return element("li", {}, element("div", { className: "row" }, left, right), bar);
  });
  at("guesses").replaceChildren(...items);
}

async function ask() {
  if (!file) return;
  latest += 1;
  const own = latest;
  try {
    if (!picture) {
      say("Looking at the picture …");
      const found = await post("/pictures", file);
      if (own !== latest) return;
      picture = found.picture;
    }
    const [classes, templates] = [at("classes").value, at("templates").value];
    const question = { picture, classes, templates, multi: at("multi").checked };
    const answer = await post("/ask", JSON.stringify(question));
    if (own !== latest) return;
    show(answer.guesses);
    say(answer.notes.join(" "));
  } catch (error) {
    if (own !== latest) return;
    if (error.status === 410 && picture) {
      picture = "";
      ask(); // and send it again
      return;
    }
    show([]);
    say(error.message, true);
  }
}

function take(given) {
  if (given.size > limit) return say(`This file has more than ${limit >> 20} MiB.`, true);
  file = given;
  picture = "";
  show([]);
  const image = at("picture");
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(given);
  image.alt = given.name || "the picture";
  image.hidden = false;
  at("hint").hidden = true;
  ask();
}

function dropped(data) {
  const files = [...data.files];
  if (!files.length) return say("That was no file: save the picture first, and drop its file.", true);
  take(files[0]);
}

at("picture").addEventListener("error", () => {
  at("picture").hidden = true;
  at("hint").hidden = false;
  at("hint").textContent = `${at("picture").alt}: this browser cannot show it`;
});
at("file").addEventListener("change", (event) => {
  if (event.target.files.length) take(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) dropped(event.clipboardData);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (event.target.matches("textarea") && !event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") dropped(event.dataTransfer);
  });
}
for (const id of ["classes", "templates", "multi"]) {
  at(id).addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, WAIT);
  });
}
fetch("/about")
  .then((response) => response.json())
  .then((about) => {
    at("model").textContent = about.model;
    limit = about.bytes;
  })
  .catch(() => say("The server does not answer. Is it still running?", true));
