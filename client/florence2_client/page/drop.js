() => addEventListener("drop", (event) => {
  // Gradio refuses dropped files whose type the browser does not know, such as HEIC on most systems.
  const files = [...event.dataTransfer.files];
  if (files.every((file) => file.type)) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  const dataTransfer = new DataTransfer();
  for (const file of files)
    dataTransfer.items.add(new File([file], file.name, { type: file.type || "image/unknown" }));
  event.target.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
}, true)
