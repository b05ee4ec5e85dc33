// Draws a tree of nodes.py into the page, and changes only what is different from the last time:
// scroll, selection of text and focus stay where they are while rows come in.
// Text is set as text. Nothing here makes HTML of what was sent.

const TAGS = new Set([
  "a", "b", "code", "dd", "details", "div", "dl", "dt", "h2", "h3", "i", "p", "pre", "section",
  "small", "span", "summary", "table", "tbody", "td", "th", "thead", "tr",
]);

function tagOf(node) {
  if (node.link || (node.tag === "a" && !node.open && !node.save)) return "a";
  if (node.tag === "a") return "button";
  return TAGS.has(node.tag) ? node.tag : "span";
}

function setAttribute(element, name, value) {
  if (value === undefined || value === null || value === "") {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, value);
  }
}

function draw(element, node) {
  setAttribute(element, "class", node.css);
  setAttribute(element, "title", node.title);
  setAttribute(element, "aria-label", node.label);
  setAttribute(element, "data-open", node.open);
  setAttribute(element, "data-key", node.key);
  setAttribute(element, "data-save", node.save && "yes");
  element.saved = node.save;
  if (node.open && element.tagName === "TR") {
    setAttribute(element, "tabindex", "0");
    setAttribute(element, "aria-selected", node.chosen ? "true" : "false");
  }
  if (element.tagName === "A") {
    const safe = /^https?:\/\//i.test(node.link || "") ? node.link : undefined;
    setAttribute(element, "href", safe);
    setAttribute(element, "target", "_blank");
    setAttribute(element, "rel", "noopener noreferrer");
  }
  for (const [name, value] of Object.entries(node.size || {})) {
    element.style.setProperty(name, Number(value));
  }
  if (node.children) {
    drawChildren(element, node.children);
  } else if (element.children.length || element.textContent !== (node.text || "")) {
    element.textContent = node.text || "";
  }
}

function drawChildren(parent, nodes) {
  if (!parent.children.length && parent.textContent) parent.textContent = "";
  const known = new Map();
  for (const child of parent.children) {
    if (child.dataset.key) known.set(child.dataset.key, child);
  }
  let at = parent.firstElementChild;
  for (const node of nodes) {
    const tag = tagOf(node);
    let element = node.key ? known.get(node.key) : at;
    known.delete(node.key);
    const fits = element && element.localName === tag && (node.key || !element.dataset.key);
    if (!fits) element = document.createElement(tag);
    if (element !== at) parent.insertBefore(element, at);
    else at = at.nextElementSibling;
    draw(element, node);
  }
  while (at) {
    const next = at.nextElementSibling;
    at.remove();
    at = next;
  }
}

// The browser makes the file of what it has: one that the server keeps would be gone with the next
// refresh, and could be read without the token.
function keep(file) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([file.text], { type: "application/json" }));
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// A page whose server went away must not look alive.
function watch(root) {
  const timer = setInterval(() => {
    if (!root.isConnected) return clearInterval(timer);
    const silent = (Date.now() - root.drawnAt) / 1000;
    const limit = root.silentAfter;
    root.warning.hidden = !limit || silent < limit;
    root.warning.textContent =
      `This page was not refreshed for ${Math.round(silent)} s: it shows the past. Its server ` +
      "may be gone, or this browser tab slept. Reload it.";
  }, 1000);
}

export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  let root = parentElement.querySelector(".otel-tracker");
  if (!root) {
    root = document.createElement("div");
    root.className = "otel-tracker";
    root.warning = document.createElement("p");
    root.warning.className = "strip bad gone";
    root.warning.hidden = true;
    root.body = document.createElement("div");
    root.append(root.warning, root.body);
    parentElement.append(root);
    watch(root);
    root.addEventListener("keydown", (event) => {
      const row = event.target.closest("tr[data-open]");
      if (!row || event.target !== row) return;
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        row.click();
      } else if (event.key === "ArrowDown" && row.nextElementSibling) {
        event.preventDefault();
        row.nextElementSibling.focus();
      } else if (event.key === "ArrowUp" && row.previousElementSibling) {
        event.preventDefault();
        row.previousElementSibling.focus();
      }
    });
  }
  root.onclick = (event) => {
    const target = event.target.closest("[data-open], [data-save], a, summary");
    if (target && target.saved) return keep(target.saved);
    if (!target || !target.dataset.open) return;
    if (String(window.getSelection())) return; // somebody copies an id
    setTriggerValue("open", target.dataset.open);
  };
  root.drawnAt = Date.now();
  root.silentAfter = data.silent_after_s;
  drawChildren(root.body, data.nodes);
  if (data.focus && root.focused !== data.focus) {
    root.scrollIntoView({ block: "start" });
  }
  root.focused = data.focus;
}
