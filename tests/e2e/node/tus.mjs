// Drives the stock `tus-js-client` by JSON lines: one command a line on stdin, answers and events on stdout,
// as client.mjs does for the other SDK.

import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";
import { Upload } from "tus-js-client";

let current;

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

const commands = {
  async nothing() {},
  // Upload a file to its end: a new upload at `endpoint`, or the one at `url` from where it stands.
  upload({ endpoint, url, path, part, headers, metadata, retries, withData }) {
    return new Promise((resolve, reject) => {
      current = new Upload(createReadStream(path), {
        endpoint,
        uploadUrl: url ?? null,
        chunkSize: part,
        headers,
        metadata: metadata ?? {},
        uploadDataDuringCreation: withData ?? false,
        retryDelays: retries ?? [],
        removeFingerprintOnSuccess: true,
        onUploadUrlAvailable: () => say({ event: "created", url: current.url }),
        onProgress: (sent) => say({ event: "progress", sent }),
        onChunkComplete: (_, accepted) => say({ event: "part", accepted }),
        onShouldRetry: (error) => {
          say({ event: "retry", status: error.originalResponse?.getStatus() ?? 0 });
          return true;
        },
        onError: (error) => reject({ code: error.originalResponse?.getStatus() ?? 0, message: error.message }),
        onSuccess: () => resolve({ url: current.url }),
      });
      current.start();
    });
  },
  // Stop where it is; `terminate` gives the upload up on the server, too.
  async abort({ terminate }) {
    await current.abort(terminate ?? false);
    return { url: current.url };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: name, ...words } = JSON.parse(line);
  commands[name](words).then(
    (result) => say({ id, result: result ?? {} }),
    (error) => say({ id, error: { code: error.code, message: String(error.message) } }),
  );
}
process.exit(0);
