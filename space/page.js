// Runs before gradio does. First the language, because gradio asks navigator.language once, at its start.
(() => {
  const chosen = new URLSearchParams(location.search).get("lang") || remembered("language");
  let language = ["zh", "en"].includes(chosen) ? chosen : /^zh/i.test(navigator.language) ? "zh" : "en";
  const locale = () => (language === "zh" ? "zh-CN" : "en");
  Object.defineProperty(navigator, "language", { get: locale });
  Object.defineProperty(navigator, "languages", { get: () => [locale()] });
  showLanguage();

  function showLanguage() {
    document.documentElement.lang = locale();
    document.documentElement.dataset.language = language;
  }

  function remembered(name) {
    try { return localStorage.getItem("mengzi-" + name); } catch { return null; } // storage may be forbidden
  }
  function remember(name, value) {
    try { localStorage.setItem("mengzi-" + name, value); } catch { /* then it holds for this page */ }
  }

  // The page stays as it is, with its photo and its results; only words change. Ours are there in both languages
  // (style.css); gradio's labels were written in the language of the start, and the other's take their places (TEXTS).
  function setLanguage(value) {
    language = value;
    remember("language", value);
    const address = new URL(location.href);
    address.searchParams.set("lang", value);
    history.replaceState(history.state, "", address);
    showLanguage();
    translate(document.body);
    written.observe(document.body, { childList: true, characterData: true, subtree: true });
  }
  const written = new MutationObserver((changes) => changes.forEach(({ type, target, addedNodes }) => {
    if (type === "characterData") translate(target);
    else addedNodes.forEach(translate);
  }));

  function translate(root) {
    const other = new Map(TEXTS.map(([zh, en]) => (language === "zh" ? [en, zh] : [zh, en])));
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
    for (let node = root; node; node = walker.nextNode()) {
      if (node.nodeType === Node.ELEMENT_NODE) {
        for (const name of ["placeholder", "aria-label"]) {
          const [, head, word] = /^((?:range slider|number input) for )?(.*)$/s.exec(node.getAttribute(name) ?? "");
          const text = other.get(word);
          if (text) node.setAttribute(name, (head ?? "") + text);
        }
      } else if (node.nodeType === Node.TEXT_NODE && !node.parentElement?.closest(".card, .zh, .en")) {
        const text = other.get(node.data.trim());
        if (text) node.data = node.data.replace(node.data.trim(), () => text);
      }
    }
  }

  // Gradio puts "dark" on the body when it starts, as the system has it; a choice made here wins and stays.
  function setTheme(theme) {
    document.body.classList.toggle("dark", theme === "dark");
    remember("theme", theme);
  }
  const theme = remembered("theme");
  if (theme) {
    const observer = new MutationObserver(() => {
      if (document.querySelector(".masthead")) { setTheme(theme); observer.disconnect(); }
    });
    observer.observe(document.documentElement, { childList: true, subtree: true });
  }

  // A word was clicked: the photo darkens where the word did not look; the objects that it names get a frame, for a word
  // that names none the three weightiest regions.
  function light(card, weights, objects) {
    const figure = card.querySelector(".seen"), canvas = figure.querySelector("canvas");
    const rects = [...figure.querySelectorAll("rect")];
    figure.classList.toggle("lit", Boolean(weights));
    rects.forEach((rect) => { rect.classList.remove("top"); delete rect.dataset.weight; });
    if (!weights) return;
    const most = Math.max(...weights), least = Math.min(...weights);
    const size = canvas.width, [, , width, height] = figure.querySelector("svg").getAttribute("viewBox").split(" ");
    const heat = new Float32Array(size * size);
    rects.forEach((rect, region) => {
      const share = (weights[region] - least) / (most - least || 1);
      rect.dataset.weight = weights[region];
      const side = (name, whole) => Math.round((rect.getAttribute(name) / whole) * size);
      const x = side("x", width), y = side("y", height);
      const right = x + side("width", width), bottom = y + side("height", height);
      for (let row = y; row < bottom; row++)
        for (let column = x; column < right; column++)
          heat[row * size + column] = Math.max(heat[row * size + column], share);
    });
    const context = canvas.getContext("2d"), pixels = context.createImageData(size, size);
    heat.forEach((share, i) => { pixels.data[4 * i + 3] = 160 * (1 - Math.sqrt(share)); });
    context.putImageData(pixels, 0, 0);
    const weightiest = weights.map((weight, i) => [weight, i]).sort((a, b) => b[0] - a[0]).slice(0, 3).map(([, i]) => i);
    (objects.length ? objects : weightiest).forEach((i) => rects[i].classList.add("top"));
  }

  const press = (button, group) => group.forEach((one) => one.setAttribute("aria-pressed", String(one === button)));

  function clickWord(word, card) {
    const again = word.getAttribute("aria-pressed") === "true";
    press(again ? null : word, card.querySelectorAll(".word"));
    light(card, again ? null : JSON.parse(word.dataset.weights), JSON.parse(word.dataset.objects));
  }

  function showBeam(button, card) {
    press(button, card.querySelectorAll(".beam"));
    card.querySelectorAll(".words").forEach((line, i) => { line.hidden = String(i) !== button.dataset.show; });
    press(null, card.querySelectorAll(".word"));
    light(card, null);
  }

  async function copy(text, card) {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // no permission, or not a secure page
      const area = document.body.appendChild(Object.assign(document.createElement("textarea"), { value: text }));
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const done = card.querySelector(".done");
    done.hidden = false;
    setTimeout(() => { done.hidden = true; }, 1500);
  }

  async function share(text, card) {
    const url = location.origin + location.pathname;
    try {
      if (navigator.share) return await navigator.share({ text, url });
    } catch (error) {
      if (error.name === "AbortError") return;
    }
    copy(text + " " + url, card);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.setLanguage) return setLanguage(button.dataset.setLanguage);
    if ("setTheme" in button.dataset) return setTheme(document.body.classList.contains("dark") ? "light" : "dark");
    const card = button.closest(".card.caption");
    if (!card) return;
    const text = () => card.querySelector(".words:not([hidden])").dataset.caption;
    if (button.matches(".word")) clickWord(button, card);
    else if (button.matches(".beam")) showBeam(button, card);
    else if ("copy" in button.dataset) copy(text(), card);
    else if ("share" in button.dataset) share(text(), card);
  });

  // Gradio takes only what the browser calls an image, and drops the rest with words of its own or without any. Many
  // systems know no HEIC: whatever is given is sent, and the server, which looks inside, says what it thinks of it.
  const AREAS = "#photo, #photos, #files";
  function asImages(files) {
    const box = new DataTransfer();
    for (const file of files)
      box.items.add(file.type.startsWith("image/") ? file : new File([file], file.name, { type: "image/*" }));
    return box.files;
  }
  document.addEventListener("change", ({ target }) => {
    if (target.matches?.("input[type=file]") && target.closest(AREAS)) target.files = asImages(target.files);
  }, true);
  document.addEventListener("drop", (event) => {
    const input = event.target.closest?.(AREAS)?.querySelector("input[type=file]"), files = event.dataTransfer?.files;
    if (!input || !files?.length || [...files].every((file) => file.type.startsWith("image/"))) return;
    event.preventDefault();
    event.stopPropagation();
    input.files = files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }, true);

  // What was given as a photo and is none: the message beside it says so, the browser's broken picture adds nothing.
  document.addEventListener("error", (event) => {
    if (event.target.matches?.("#photo img")) event.target.style.visibility = "hidden";
  }, true);
  document.addEventListener("load", (event) => {
    if (event.target.matches?.("#photo img")) event.target.style.visibility = "";
  }, true);

  // Hovering: what the region model says of the smallest object there, else region, and its weight for the clicked word.
  function regionAt(figure, event) {
    const box = figure.getBoundingClientRect();
    const [, , width, height] = figure.querySelector("svg").getAttribute("viewBox").split(" ");
    const x = ((event.clientX - box.left) / box.width) * width, y = ((event.clientY - box.top) / box.height) * height;
    const sides = (rect) => ["x", "y", "width", "height"].map((name) => Number(rect.getAttribute(name)));
    const area = (rect) => sides(rect)[2] * sides(rect)[3];
    return [...figure.querySelectorAll("rect")]
      .filter((rect) => { const [left, top, w, h] = sides(rect); return left <= x && x < left + w && top <= y && y < top + h; })
      .sort((a, b) => ("label" in b.dataset) - ("label" in a.dataset) || area(a) - area(b))[0];
  }

  document.addEventListener("pointermove", (event) => {
    const figure = event.target.closest?.(".seen");
    document.querySelectorAll(".seen .tip").forEach((tip) => { if (tip.parentElement !== figure) tip.hidden = true; });
    document.querySelectorAll(".seen rect.named").forEach((rect) => rect.classList.remove("named"));
    const rect = figure && regionAt(figure, event);
    if (!rect) return;
    const tip = figure.querySelector(".tip"), { label, score, attributes, weight } = rect.dataset;
    const lines = [label && `${label} ${Number(score).toFixed(2)}`, attributes, weight && `${(100 * weight).toFixed(1)} %`];
    tip.textContent = lines.filter(Boolean).join("\n");
    tip.hidden = !tip.textContent;
    rect.classList.toggle("named", Boolean(label));
    const box = figure.getBoundingClientRect();
    tip.style.left = Math.min(event.clientX - box.left + 12, box.width - tip.offsetWidth - 4) + "px";
    tip.style.top = Math.min(event.clientY - box.top + 16, box.height - tip.offsetHeight - 4) + "px";
  });
})();
