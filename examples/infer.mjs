// Detect objects over gRPC with Node 18 or newer: node infer.mjs IMAGE [HOST:PORT]
// Needs kserve.proto next to it, and: npm install @grpc/grpc-js @grpc/proto-loader
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [image, address = "127.0.0.1:8001"] = process.argv.slice(2);
const proto = loadSync(fileURLToPath(new URL("kserve.proto", import.meta.url)), { keepCase: true });
const { GRPCInferenceService } = grpc.loadPackageDefinition(proto).inference;
const client = new GRPCInferenceService(address, grpc.credentials.createInsecure());

const tensor = (name, datatype, field, value) => ({ name, datatype, shape: [1], contents: { [field]: [value] } });
const request = {
  model_name: "florence2_ensemble",
  inputs: [
    tensor("IMAGE", "BYTES", "bytes_contents", await readFile(image)),
    tensor("TASK", "BYTES", "bytes_contents", Buffer.from("<OD>")),
    tensor("NUM_BEAMS", "INT32", "int_contents", 1),
  ],
  outputs: [{ name: "RESULT" }],
};
const deadline = Date.now() + 60_000; // without one it would wait forever
const response = await new Promise((resolve, reject) =>
  client.ModelInfer(request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer))),
);
const answer = JSON.parse(response.raw_output_contents[0].subarray(4))["<OD>"]; // 4 bytes of length come first
answer.labels.forEach((label, place) => console.log(label, answer.bboxes[place]));
client.close();
