// A client that knows nothing of credentials but what the SDK finds, for kiam's tests.
//
//   node client.mjs who         prints who it is to STS, once
//   node client.mjs contract    reads times, and prints for each the key that it would sign with

import { createInterface } from "node:readline";
import { createRequire } from "node:module";

// Beside the modules that were installed, which are elsewhere than this file.
const require = createRequire(process.env.KIAM_SDK_MODULES + "/");
const { STSClient, GetCallerIdentityCommand } = require("@aws-sdk/client-sts");

const Real = Date;
let offset = 0;

// The SDK's clock is the language's.
class Moved extends Real {
  constructor(...parts) {
    if (parts.length === 0) {
      super(Real.now() + offset);
    } else {
      super(...parts);
    }
  }
  static now() {
    return Real.now() + offset;
  }
}

// The SDK says on the console when it lives on expired credentials: it is not what is read here.
console.warn = () => {};

const client = new STSClient({});
try {
  if (process.argv[2] === "who") {
    const who = await client.send(new GetCallerIdentityCommand({}));
    console.log(who.Arn);
  } else {
    globalThis.Date = Moved;
    for await (const line of createInterface({ input: process.stdin })) {
      offset = Number(line) * 1000 - Real.now();
      try {
        const keys = await client.config.credentials();
        console.log("key", keys.accessKeyId);
      } catch (error) {
        console.log("error", String(error.message).replaceAll("\n", " "));
      }
    }
  }
} catch (error) {
  console.error(String(error));
  process.exitCode = 1;
}
