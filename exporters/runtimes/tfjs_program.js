// Runs a graph model of TensorFlow.js: node tfjs_program.js FOLDER. A line of JSON with inputs gives a line with outputs.
const fs = require('fs');
const path = require('path');
const readline = require('readline');
const tf = require('@tensorflow/tfjs-core');
require('@tensorflow/tfjs-backend-cpu');
const {loadGraphModel} = require('@tensorflow/tfjs-converter');

const say = (value) => process.stdout.write(JSON.stringify(value) + '\n');
const VIEWS = {float32: Float32Array, int32: Int32Array, bool: Uint8Array};

function artifacts(folder) {
  const model = JSON.parse(fs.readFileSync(path.join(folder, 'model.json')));
  const specs = model.weightsManifest.flatMap((group) => group.weights);
  const files = model.weightsManifest.flatMap((group) => group.paths);
  const data = Buffer.concat(files.map((file) => fs.readFileSync(path.join(folder, file))));
  const weightData = data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
  return {...model, weightSpecs: specs, weightData};
}

async function main() {
  await tf.setBackend('cpu');
  const found = artifacts(process.argv[2]);
  const model = await loadGraphModel(tf.io.fromMemory(found));
  const inputs = Object.keys(found.signature.inputs).sort();
  const outputs = Object.keys(found.signature.outputs).sort().map((name) => found.signature.outputs[name].name);
  say({ready: true});
  for await (const line of readline.createInterface({input: process.stdin})) {
    try {
      const given = {};
      JSON.parse(line).forEach((one, place) => {
        const bytes = Buffer.from(one.data, 'base64');
        const whole = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
        given[found.signature.inputs[inputs[place]].name] = tf.tensor(new VIEWS[one.dtype](whole), one.shape, one.dtype);
      });
      const tensors = await model.executeAsync(given, outputs);
      const answer = [];
      for (const tensor of Array.isArray(tensors) ? tensors : [tensors]) {
        const values = await tensor.data();
        const bytes = Buffer.from(values.buffer, values.byteOffset, values.byteLength);
        answer.push({shape: tensor.shape, dtype: tensor.dtype, data: bytes.toString('base64')});
        tensor.dispose();
      }
      Object.values(given).forEach((tensor) => tensor.dispose());
      say({outputs: answer});
    } catch (error) {
      say({error: error.message});
    }
  }
}

main().catch((error) => { say({error: error.message}); process.exit(1); });
