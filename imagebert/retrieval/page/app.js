// Asks the server and shows what it says. Text from outside is only ever set as text.
"use strict";

const at = (id) => document.getElementById(id);
// Of a region: its class, behind what it is like where the detector tells it.
const named = (region) => [region.attribute, region.class].filter(Boolean).join(" ");
const percent = (value) => (100 * value).toFixed(value < 0.1 ? 1 : 0) + " %";

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function say(text, error = false) {
  at("message").textContent = text;
  at("message").classList.toggle("error", error);
}

async function call(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: is it still running?");
  }
  const body = await answer.json().catch(() => ({ error: "the server failed: its own messages say why" }));
  if (!answer.ok) throw new Error(body.error);
  return body;
}

let asked = 0; // only the latest question's answer is shown

async function attempt(work) {
  const mine = ++asked;
  say("Looking …");
  try {
    await work(() => mine === asked);
  } catch (error) {
    if (mine === asked) {
      at("results").replaceChildren();
      say(error.message, true);
    }
  }
}

function search(text) {
  return attempt(async (latest) => {
    const found = await call("/search?q=" + encodeURIComponent(text));
    if (!latest()) return;
    const unknown = found.unknown.length ? ` The model does not know: ${found.unknown.join(", ")}.` : "";
    say(`The best images for “${found.query}”.${unknown}`);
    at("results").className = "";
    at("results").replaceChildren(...found.hits.map((hit) => {
      const card = element("button", "", { class: "hit", "data-number": hit.number });
      card.append(hit.picture
        ? element("img", "", { src: `${hit.picture}/small`, alt: hit.key, loading: "lazy" })
        : element("div", "no photograph", { class: "none" }));
      const label = element("span");
      label.append(element("b", percent(hit.probability)), ` ${hit.key}`);
      card.append(label);
      card.addEventListener("click", () => explain(hit, found.query));
      return card;
    }));
  });
}

function draw(svg, regions) {
  const make = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
  svg.replaceChildren(...regions.map((region) => {
    const [rect, title, [left, top, right, bottom]] = [make("rect"), make("title"), region.box];
    title.textContent = named(region);
    rect.append(title);
    const sides = { x: left, y: top, width: right - left, height: bottom - top };
    for (const [key, value] of Object.entries(sides)) rect.setAttribute(key, value);
    return rect;
  }));
}

async function explain(hit, query) {
  try {
    const found = await call(`/regions/${hit.number}?q=` + encodeURIComponent(query));
    at("detail-title").textContent = `${query} – ${percent(hit.probability)}`;
    Object.assign(at("photograph"), { alt: found.key, width: found.width, height: found.height });
    if (hit.picture) at("photograph").src = `${hit.picture}/large`;
    else at("photograph").removeAttribute("src");
    draw(at("boxes"), found.regions);
    at("words").replaceChildren(...found.words.map((word, row) => {
      const choice = element("button", word, { "aria-pressed": "false" });
      choice.addEventListener("click", () => look(found, row));
      return choice;
    }));
    at("legend").replaceChildren(...found.regions.map((region, place) => {
      const line = element("li", named(region) + (region.class === "whole image" ? "" : ` ${percent(region.confidence)}`));
      if (found.answers[place].length) line.append(" ← ", element("b", found.answers[place].join(", ")));
      return line;
    }));
    at("detail").showModal();
  } catch (error) {
    say(error.message, true);
  }
}

// Fills each region by how much the word looks at it, the most looked at the fullest.
function look(found, row) {
  const weights = found.attention[row].map((weight, place) => (found.regions[place].class === "whole image" ? 0 : weight));
  const most = Math.max(...weights, 1e-9);
  [...at("boxes").children].forEach((rect, place) => { rect.style.fillOpacity = 0.65 * (weights[place] / most) ** 2; });
  [...at("words").children].forEach((choice, place) => choice.setAttribute("aria-pressed", String(place === row)));
}

function ask(file, limit) {
  return attempt(async (latest) => {
    if (file.size > limit) throw new Error(`the picture is larger than ${limit >> 20} MB: send a smaller one`);
    const found = await call("/captions", { method: "POST", body: file });
    if (!latest()) return;
    say("The best captions for your picture.");
    const answer = element("div", "", { class: "answer" });
    const stage = element("div", "", { class: "stage" });
    const boxes = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    boxes.setAttribute("viewBox", "0 0 1 1");
    boxes.setAttribute("preserveAspectRatio", "none");
    const size = { width: found.width, height: found.height };
    const shown = element("img", "", { alt: "your picture", src: URL.createObjectURL(file), ...size });
    shown.addEventListener("load", () => URL.revokeObjectURL(shown.src));
    stage.append(shown, boxes);
    draw(boxes, found.regions);
    const list = element("ol");
    for (const { text, probability } of found.captions) {
      const line = element("li", text + " ");
      line.append(element("small", percent(probability)));
      list.append(line);
    }
    answer.append(stage, list);
    at("results").className = "list";
    at("results").replaceChildren(answer);
  });
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  search(at("query").value);
});
at("close").addEventListener("click", () => at("detail").close());
at("detail").addEventListener("click", (event) => event.target === at("detail") && at("detail").close());

call("/about").then((about) => {
  at("about").textContent = `${about.images.toLocaleString()} images; ${about.captions.toLocaleString()} captions to answer pictures with`;
  at("upload").hidden = !about.uploads;
  at("picture").addEventListener("change", ({ target }) => {
    if (target.files.length) ask(target.files[0], about.upload_bytes);
    target.value = "";
  });
  at("examples").replaceChildren(...about.examples.map((text) => {
    const link = element("a", text, { href: "#" });
    link.addEventListener("click", (event) => {
      event.preventDefault();
      at("query").value = text;
      search(text);
    });
    return link;
  }));
}).catch((error) => say(error.message, true));
