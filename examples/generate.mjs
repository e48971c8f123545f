// Detect objects over HTTP with Node 18 or newer, without packages: node generate.mjs IMAGE [HOST:PORT]
import { readFile } from "node:fs/promises";

const [image, address = "127.0.0.1:8000"] = process.argv.slice(2);
const response = await fetch(`http://${address}/v2/models/florence2_ensemble/generate`, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ IMAGE: (await readFile(image)).toString("base64"), TASK: "<OD>", NUM_BEAMS: 1 }),
});
const outputs = await response.json();
if (!response.ok) throw new Error(outputs.error);
const answer = JSON.parse(outputs.RESULT)["<OD>"];
answer.labels.forEach((label, place) => console.log(label, answer.bboxes[place]));
