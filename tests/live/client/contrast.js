() => {
  // Returns the number of visible texts, and "ratio text" of those whose contrast by WCAG's formula is below 4.5.
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = pen.getImageData(0, 0, 1, 1).data;
    return [red, green, blue, alpha / 255];
  };
  const over = ([r, g, b, alpha], below) => [r, g, b].map((channel, i) => channel * alpha + below[i] * (1 - alpha));
  const background = (element) => {
    if (!element) return [255, 255, 255];
    const own = rgba(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, background(element.parentElement));
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((channel) => channel / 255)
      .map((channel) => (channel <= 0.04045 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const opacity = (element) => (element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1);
  const ratio = (element, style) => {
    const below = background(element);
    const [r, g, b, alpha] = rgba(style.color);
    const [dark, light] = [below, over([r, g, b, alpha * opacity(element)], below)].map(luminance).sort((x, y) => x - y);
    return (light + 0.05) / (dark + 0.05);
  };
  const found = [];
  const check = (element, style, text) => {
    if (!text.trim() || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) return;
    found.push([ratio(element, style), text.trim().slice(0, 60)]);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const { parentElement: element, data } = texts.currentNode;
    if (!["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName)) check(element, getComputedStyle(element), data);
  }
  for (const field of document.querySelectorAll("input, textarea")) {
    const style = getComputedStyle(field, field.value ? null : "::placeholder");
    if (!["checkbox", "file"].includes(field.type)) check(field, style, field.value || field.placeholder);
  }
  return { checked: found.length, low: found.filter(([r]) => r < 4.5).map(([r, text]) => `${r.toFixed(2)} ${text}`) };
}
